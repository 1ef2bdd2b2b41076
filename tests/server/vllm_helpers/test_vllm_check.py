"""The check before vLLM loads weights; tests/cluster/inferenceservice/test_vllm.py runs it with the real vLLM."""

import json
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from hone_server.adapter_sidecar.link_artifacts import install_vllm_modules
from hone_server.vllm import check


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> types.SimpleNamespace:
    """Return a stand-in for the installed vLLM; a test changes what it refuses."""
    fake = types.SimpleNamespace(refuses=None, embedding_modules={}, takes_adapters=True)

    class Model:
        embedding_modules: Any = fake.embedding_modules

    class Arguments:
        @classmethod
        def from_cli_args(cls, options: Any) -> "Arguments":
            return cls()

        def create_model_config(self) -> Any:
            if fake.refuses:
                raise fake.refuses
            return types.SimpleNamespace(architectures=["FakeForCausalLM"])

    def parser(made: Any) -> Any:
        options = types.SimpleNamespace(model=None, model_tag="m", enable_lora=True, max_lora_rank=64)
        return types.SimpleNamespace(parse_args=lambda words: options)

    modules = {
        "vllm": {"__version__": "9.9"},
        "vllm.utils": {"FlexibleArgumentParser": object},
        "vllm.entrypoints.openai.cli_args": {"make_arg_parser": parser},
        "vllm.engine.arg_utils": {"AsyncEngineArgs": Arguments},
        "vllm.model_executor.model_loader.utils": {"get_model_cls": lambda config: Model},
        "vllm.model_executor.models.interfaces": {"supports_lora": lambda model: fake.takes_adapters},
    }
    for name, content in modules.items():
        module = types.ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(check, "ADAPTERS_FOLDER", tmp_path / "adapters")
    monkeypatch.delenv(check.KEY_FILE_ENV, raising=False)
    return fake


def write_adapter(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True)
    header = json.dumps({name: {} for name in names}).encode()
    (folder / "adapter_model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)


def refusal() -> str:
    with pytest.raises(SystemExit) as end:
        check.main(["m"])
    return str(end.value.code)


def test_the_last_line_has_the_message_of_the_installed_vllm(vllm: Any) -> None:
    check.main(["m"])
    vllm.refuses = ValueError("Quantization x is\nnot supported. Use \x1b[2J y.")
    expected = (
        "hone-check: ModelUnsupported: vLLM 9.9 refuses m: Quantization x is not supported; Use [2J y. Name another"
    )
    assert refusal().startswith(expected)


def test_a_model_without_adapters_and_embeddings_without_support_are_refused(vllm: Any, tmp_path: Path) -> None:
    write_adapter(tmp_path / "adapters" / "a", "m.layers.0.q_proj.lora_A.weight")
    check.main(["m"])
    write_adapter(tmp_path / "adapters" / "b", "m.embed_tokens.lora_embedding_A", "lm_head.lora_A.weight")
    words = (
        "hone-check: AdapterMismatch: Adapter b changes embed_tokens, lm_head, and vLLM 9.9 adapts only linear layers"
    )
    assert refusal().startswith(words)
    vllm.embedding_modules.update({"embed_tokens": "input_embeddings", "lm_head": "output_embeddings"})
    check.main(["m"])
    vllm.takes_adapters = False
    assert refusal().startswith("hone-check: AdapterMismatch: vLLM 9.9 serves FakeForCausalLM without adapters")


def test_checks_that_a_version_lacks_are_left_to_its_start(vllm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("vllm.model_executor.models.interfaces", "vllm.engine.arg_utils", "vllm"):
        monkeypatch.setitem(sys.modules, module, None)
        check.main(["m"])


def test_an_empty_key_is_refused(vllm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "key").write_text("\n")
    monkeypatch.setenv(check.KEY_FILE_ENV, str(tmp_path / "key"))
    assert refusal().startswith("hone-check: InvalidSpec: the Secret of spec.apiKeySecret holds an empty key")


def test_gpus_are_checked_only_with_the_package_next_to_the_check(tmp_path: Path) -> None:
    """Without any installed package, as in an image that has nothing of Hone's."""
    install_vllm_modules(tmp_path)
    environ = {"PYTHONPATH": str(tmp_path), "HONE_REQUIRED_GPUS": "4096", "HONE_GPU_RESOURCE": "amd.com/gpu"}
    command = [sys.executable, "-S", "-m", "hone_vllm", "m"]
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=120, check=False)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("hone-check: GpuNotUsable: The pod asks for 4096 amd.com/gpu (spec.resources.gpus), and ")


def test_gpus_that_are_not_required_are_not_checked(vllm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    found: Any = types.SimpleNamespace(cause="torch sees none", remedy="Do this.")
    module: Any = types.ModuleType("hone_gpucheck")
    module.find_problem = lambda environ: asked.append(environ) or found
    monkeypatch.setitem(sys.modules, "hone_gpucheck", module)
    assert refusal() == "hone-check: GpuNotUsable: torch sees none. Do this"
    found = None
    check.main(["m"])
    assert len(asked) == 2
