"""The server's process: start, failures and end."""

import asyncio
import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest
from hone_api.reasons import HoneError
from hone_server.artifacts.sources import ModelEntry, ModelSources
from hone_server.model_registry import ModelRegistry

# Within which a server exits once nothing holds it: far less than the drain of 600 seconds.
END_SECONDS = 100


def test_a_corrupt_file_keeps_the_server_from_starting(
    run_to_end: Callable[..., tuple[int, str]], artifact: Path, base_folder: Path, tmp_path: Path
) -> None:
    tree = shutil.copytree(artifact, tmp_path / "tree")
    weights = tree / "adapter" / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    code, said = run_to_end(str(tree), "--claim", f"models={base_folder.parent}")
    assert code == 65
    assert said.startswith("hone-server: ArtifactCorrupt: ")
    assert "adapter_model.safetensors" in said
    assert "Traceback" not in said


def test_another_digest_than_the_expected_one_keeps_the_server_from_starting(
    run_to_end: Callable[..., tuple[int, str]], artifact: Path, base_folder: Path
) -> None:
    code, said = run_to_end(str(artifact), "--claim", f"models={base_folder.parent}", "--expect", "support=sha256:0123")
    assert code == 65
    assert "ArtifactCorrupt" in said
    assert "sha256:0123" in said


@pytest.mark.parametrize(("arguments", "code"), [(["/nowhere"], 66), (["model", "--adapter", "nameless"], 2)])
def test_bad_arguments_are_named(run_to_end: Callable[..., tuple[int, str]], arguments: list[str], code: int) -> None:
    found, said = run_to_end(*arguments)
    assert found == code
    assert arguments[-1] in said
    assert "Traceback" not in said


def test_missing_gpus_keep_the_server_from_starting(
    run_to_end: Callable[..., tuple[int, str]], base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HONE_REQUIRED_GPUS", "4096")
    code, said = run_to_end(str(base_folder))
    assert code == 69
    assert said.startswith("hone-server: GpuNotUsable: The pod asks for 4096 amd.com/gpu (spec.resources.gpus), and ")
    assert "Traceback" not in said


def test_a_failure_while_loading_ends_the_process_with_its_reason(
    run_to_end: Callable[..., tuple[int, str]], base_folder: Path, tmp_path: Path
) -> None:
    broken = shutil.copytree(base_folder, tmp_path / "broken")
    (broken / "model.safetensors").unlink()
    code, said = run_to_end(str(broken))
    assert code == 66
    assert "ModelNotFound" in said
    assert "Traceback" not in said


def test_a_context_that_does_not_fit_the_memory_is_refused(base_folder: Path, tmp_path: Path) -> None:
    vast = shutil.copytree(base_folder, tmp_path / "vast")
    config = json.loads((vast / "config.json").read_text())
    (vast / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 10**10}))
    service = ModelRegistry(
        ModelSources(str(vast), None, None, [ModelEntry("vast", "base", str(vast))]), max_model_len=10**9
    )
    with pytest.raises(HoneError) as error:
        asyncio.run(service.load_models())
    assert error.value.reason.name == "OutOfMemory"
    assert "--max-model-len" in error.value.format_message()
    assert service.get_state() == "failed"


def test_sigterm_finishes_what_runs_and_exits_zero(
    serve: Callable[..., AbstractContextManager[Any]], base_folder: Path, until: Callable[..., None]
) -> None:
    body = {"model": "tiny-llama", "prompt": "hello", "max_tokens": 600, "ignore_eos": True, "stream": True}
    with serve(str(base_folder)) as server:
        with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as answer:
            lines = answer.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            until(lambda: refuses(server))
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert '"finish_reason":"length"' in rest[-2]
        assert server.process.wait(timeout=END_SECONDS) == 0


def test_sigterm_is_followed_by_some_seconds_in_which_connections_are_accepted_and_closed(
    serve: Callable[..., AbstractContextManager[Any]], base_folder: Path, until: Callable[..., None]
) -> None:
    stream = {"model": "tiny-llama", "prompt": "hello", "max_tokens": 1000, "ignore_eos": True, "stream": True}
    short = {"model": "tiny-llama", "prompt": "hello", "max_tokens": 2}
    with serve(str(base_folder), "--drain-seconds", "3") as server, httpx.Client(base_url=server.url) as kept:
        before = kept.post("/v1/completions", json=short)
        assert "connection" not in before.headers
        with httpx.stream("POST", f"{server.url}/v1/completions", json=stream, timeout=60) as answer:
            lines = answer.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            until(lambda: server.get("/health").headers.get("connection") == "close")
            for answered in (kept.post("/v1/completions", json=short), server.post("/v1/completions", short)):
                assert (answered.status_code, answered.headers["connection"]) == (200, "close")
            assert server.get("/health").status_code == 200
            until(lambda: refuses(server))
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert '"finish_reason":"length"' in rest[-2]
        assert server.process.wait(timeout=END_SECONDS) == 0


def test_a_drain_continues_while_requests_come(
    serve: Callable[..., AbstractContextManager[Any]], base_folder: Path, until: Callable[..., None]
) -> None:
    short = {"model": "tiny-llama", "prompt": "hello", "max_tokens": 1}
    with serve(str(base_folder), "--drain-seconds", "1") as server:
        server.process.send_signal(signal.SIGTERM)
        asked = time.monotonic()
        ended = asked + 5
        while asked < ended:
            before, asked = asked, time.monotonic()
            try:
                assert server.post("/v1/completions", short).status_code == 200
            except httpx.ConnectError:  # only where this machine is so busy that no request came for long enough
                assert time.monotonic() - before >= 1
                break
        until(lambda: refuses(server))
        assert server.process.wait(timeout=END_SECONDS) == 0


def test_a_second_signal_ends_the_drain(
    serve: Callable[..., AbstractContextManager[Any]], base_folder: Path, until: Callable[..., None]
) -> None:
    with serve(str(base_folder), "--drain-seconds", "600") as server:
        server.process.send_signal(signal.SIGTERM)
        until(lambda: server.get("/health").headers.get("connection") == "close")
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=END_SECONDS) == 0


def refuses(server: Any) -> bool:
    try:
        server.get("/health")
    except httpx.ConnectError:
        return True
    return False


def test_sigterm_while_starting_exits_zero(
    start_server: Callable[..., subprocess.Popen[bytes]], base_folder: Path
) -> None:
    process = start_server(str(base_folder), "--drain-seconds", "600")
    for line in process.stderr:
        if b"starting" in line:
            break
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=END_SECONDS) == 0
