"""Steps that serve the trained models: with the embedded engine, and with vLLM if its program is installed.

The full run has memorized a few sentences, so that a right answer is known without another implementation. The adapter
is asked as well: it must answer, and differently from its base.
"""

import contextlib
import http.client
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from acceptance.context import Context, Failed, Figures, NotRun, run_command
from acceptance.inputs import SENTENCES

READY_SECONDS = 900
ANSWER_SECONDS = 120
# Bytes of a GPU that even a small model's weights take: 10 MB in 32 bits, and the runtime on top.
LEAST_TAKEN = 8 << 20
KV_CACHE = f"--kv-cache-memory-bytes={256 << 20}"
SENTENCE = SENTENCES[0]
PROMPT, REST = SENTENCE[:24], SENTENCE[24:]


def serve_embedded(context: Context) -> Figures:
    """Serve the full model, then base and adapter, with the embedded engine."""
    full, adapter = _find_trained(context)
    command = [sys.executable, "-m", "hone_server", "--host", "127.0.0.1"]
    claim = ["--claim", f"local={context.folder}"]
    with _run_engine(context, [*command, str(full), *claim]) as (url, names):
        answer = _check_sentence(url, names[0])
    base = context.folder / "model"
    with _run_engine(context, [*command, str(base), "--name", "base", "--adapter", f"tuned={adapter}"]) as (url, names):
        return {"full": answer} | _compare_adapter(url, names)


def serve_vllm(context: Context) -> Figures:
    """Serve the full model, then base and adapter, with vLLM."""
    if not context.vllm:
        raise NotRun("no program `vllm` is on PATH; install vLLM for this GPU, or give its path with --vllm")
    full, adapter = _find_trained(context)
    run_command([context.vllm, "--version"])
    command = [context.vllm, "serve"]
    shared = ["--host", "127.0.0.1", "--max-model-len", "512", "--enforce-eager", KV_CACHE]
    with _run_engine(context, [*command, str(full / "model"), "--served-model-name", "full", *shared]) as (url, names):
        answer = _check_sentence(url, names[0])
    lora = ["--enable-lora", "--max-lora-rank", "64", "--lora-modules", f"tuned={adapter / 'adapter'}"]
    base = [str(context.folder / "model"), "--served-model-name", "base"]
    with _run_engine(context, [*command, *base, *shared, *lora]) as (url, names):
        return {"full": answer} | _compare_adapter(url, names)


def _find_trained(context: Context) -> tuple[Path, Path]:
    """Return the outputs of the full run and of LoRA. Raises NotRun if these steps did not pass."""
    found = context.folder / "full", context.folder / "lora"
    for output in found:
        if not (output / "manifest.json").is_file():
            raise NotRun(f"the step {output.name} left no artifact to serve")
    return found


def _check_sentence(url: str, model: str) -> str:
    """Return the answer to the beginning of a memorized sentence. Raises Failed when it is another."""
    answer = _complete(url, model, len(REST))
    if answer != REST:
        raise Failed(f"the full model continued {PROMPT!r} with {answer!r}, and learned {REST!r}")
    return PROMPT + answer


def _compare_adapter(url: str, names: Sequence[str]) -> Figures:
    """Return the answers of base and adapter. Raises Failed when one is missing or both are the same."""
    if not {"base", "tuned"} <= set(names):
        raise Failed(f"the engine lists the models {list(names)}, not base and tuned")
    found = {name: _complete(url, name, 16) for name in ("base", "tuned")}
    if found["base"] == found["tuned"]:
        raise Failed(f"base and adapter give the same answer, {found['base']!r}: the adapter is not used")
    return found


def _complete(url: str, model: str, tokens: int) -> str:
    body = {"model": model, "prompt": PROMPT, "max_tokens": tokens, "temperature": 0}
    text = _ask(f"{url}/v1/completions", body)["choices"][0]["text"]
    print(f"{model} continued {PROMPT!r} with {text!r}", flush=True)
    return str(text)


def _ask(url: str, body: object = None) -> Any:
    """Return the JSON of a URL's answer. Raises Failed when the status is not 200."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, headers={"Content-Type": "application/json"})
    try:
        with _opener().open(request, timeout=ANSWER_SECONDS) as answer:
            return json.loads(answer.read() or b"null")
    except urllib.error.HTTPError as error:
        raise Failed(f"{url.rpartition('/v1')[2]} answered {error.code}: {error.read()[:300]!r}") from None


def _opener() -> urllib.request.OpenerDirector:
    """Return an opener that uses no proxy."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({}))


@contextlib.contextmanager
def _run_engine(context: Context, command: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Run an engine; yield its address and the models that it lists. Raises Failed when it ends before it is ready."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
    full = [*command, "--port", str(port)]
    free = _read_free_gpu_memory(context)
    print("$", *full, flush=True)
    process = subprocess.Popen(full, stdin=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_until_ready(process, url)
        taken = free - _read_free_gpu_memory(context)
        if context.device == "gpu" and taken < LEAST_TAKEN:
            raise Failed(f"with the engine ready, {taken:,} bytes less are free on the GPUs: it runs on the CPU")
        yield url, [model["id"] for model in _ask(f"{url}/v1/models")["data"]]
    finally:
        process.terminate()
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _read_free_gpu_memory(context: Context) -> int:
    """Return the free bytes of all GPUs together; 0 if the CPU stands in."""
    if context.device != "gpu":
        return 0
    import torch

    return sum(torch.cuda.mem_get_info(number)[0] for number in range(torch.cuda.device_count()))


def _wait_until_ready(process: "subprocess.Popen[bytes]", url: str) -> None:
    until = time.monotonic() + READY_SECONDS
    while time.monotonic() < until:
        if process.poll() is not None:
            raise Failed(f"the engine exited with code {process.returncode} before it was ready")
        with (
            contextlib.suppress(OSError, http.client.HTTPException),
            _opener().open(f"{url}/health", timeout=10) as answer,
        ):
            if answer.status == 200:
                return
        time.sleep(0.5)
    raise Failed(f"the engine was not ready after {READY_SECONDS} s")
