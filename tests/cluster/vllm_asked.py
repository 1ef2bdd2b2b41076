"""Run in a pod of vLLM's image: query vLLM's own application under Hone's middleware, and run `hone_vllm`.

Prints a line of JSON. `routes`: by method and path, the status without the key and with it. `preflight`: the status of
a browser's preflight request. `checks`: by the kind of model, the report before weights are loaded.
"""

import asyncio
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

KEY = "Key-of-the-pod"
TINY = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "vocab_size": 320,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}
QWEN2 = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
MODELS = {
    "architecture": {"architectures": ["NoSuchForCausalLM"]},
    "quantization": {"quantization_config": {"quant_method": "no-such-method"}},
    "embeddings": QWEN2,
}
ADAPTER = {"peft_type": "LORA", "r": 8, "lora_alpha": 8, "target_modules": ["q_proj", "embed_tokens"], "bias": "none"}


def main() -> None:
    folder = Path(mkdtemp())
    (folder / "key").write_text(f"{KEY}\n")
    os.environ |= {"HONE_API_KEY_FILE": str(folder / "key"), "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    routes, preflight = asyncio.run(ask_routes())
    print(json.dumps({"routes": routes, "preflight": preflight, "checks": check_models(folder)}))


def find(name: str, *modules: str) -> Any:
    """Return a name that versions of vLLM define in different modules."""
    for module in modules:
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError):
            continue
    raise ImportError(name)


async def ask_routes() -> tuple[dict[str, list[int]], list[Any]]:
    import httpx

    old = "vllm.entrypoints.openai"
    parser = find("FlexibleArgumentParser", "vllm.utils.argparse_utils", "vllm.utils")()
    make_parser = find("make_arg_parser", "vllm.entrypoints.launchers.cli_args", f"{old}.cli_args")
    build_app = find("build_app", "vllm.entrypoints.launchers.app", f"{old}.api_server")
    words = ["--middleware", "hone_gate.Gate", "--allowed-origins", '["*"]']
    app = build_app(make_parser(parser).parse_args(words), ("generate",))
    routes = {(method, route.path) for route in app.routes for method in getattr(route, "methods", None) or ["GET"]}
    routes |= {(method, path) for _, path in routes for method in ("GET", "POST", "PUT", "DELETE", "OPTIONS")}
    routes |= {("POST", "/nowhere"), ("POST", "//v1/completions"), ("POST", "/V1/completions")}
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    found = {}
    async with httpx.AsyncClient(transport=transport, base_url="http://engine") as client:
        for method, path in sorted(routes):
            plain = path.replace("{", "").replace("}", "")
            answers = [
                await client.request(method, plain, headers=headers)
                for headers in ({}, {"Authorization": f"Bearer {KEY}"})
            ]
            found[f"{method} {path}"] = [answer.status_code for answer in answers]
        wants = {"Origin": "http://app", "Access-Control-Request-Method": "POST"}
        headers = wants | {"Access-Control-Request-Headers": "authorization"}
        answer = await client.options("/v1/chat/completions", headers=headers)
    return found, [answer.status_code, answer.headers.get("access-control-allow-origin")]


def check_models(folder: Path) -> dict[str, str]:
    """Run the module as the init container does, next to links of adapters."""
    found = {}
    for kind, changed in MODELS.items():
        model, served = folder / kind, folder / f"served-{kind}"
        model.mkdir()
        (model / "config.json").write_text(json.dumps(TINY | changed))
        adapter = served / "adapters" / "faq"
        adapter.mkdir(parents=True)
        (adapter / "adapter_config.json").write_text(json.dumps(ADAPTER))
        names = {"m.q_proj.lora_A.weight": {}} | (
            {"m.embed_tokens.lora_embedding_A": {}} if kind == "embeddings" else {}
        )
        header = json.dumps(names).encode()
        (adapter / "adapter_model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
        source = importlib.import_module("hone_vllm").__file__
        (served / "hone_vllm.py").write_text(Path(str(source)).read_text())
        environment = os.environ | {"PYTHONPATH": f"{served}:{os.environ.get('PYTHONPATH', '')}"}
        command = [sys.executable, "-m", "hone_vllm", str(model), "--max-model-len", "64", "--enable-lora"]
        # Python looks in the working directory first, where another copy of the module has no adapters next to it.
        done = subprocess.run(
            [*command, "--max-lora-rank", "8"], cwd=served, env=environment, capture_output=True, text=True
        )
        found[kind] = done.stderr.strip().splitlines()[-1].replace(f"{folder}/", "") if done.returncode else ""
    return found


if __name__ == "__main__":
    main()
