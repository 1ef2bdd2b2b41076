"""The OpenAPI document, and the server's answers to requests that match it."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest


def properties(server: Any, name: Any) -> Any:
    schema = server.get("/openapi.json").json()["components"]["schemas"][name]
    assert schema["additionalProperties"] is False
    return schema["properties"].keys()


def test_it_lists_everything_that_is_accepted(server: Any) -> None:
    shared = {"model", "n", "seed", "stop", "presence_penalty", "repetition_penalty", "logit_bias", "user", "tools"}
    assert shared | {"messages", "max_completion_tokens", "top_logprobs"} <= properties(server, "ChatRequest")
    assert shared | {"prompt", "echo"} <= properties(server, "CompletionRequest")
    assert "mirostat" not in properties(server, "ChatRequest") | properties(server, "CompletionRequest")


def test_its_paths_are_those_of_the_server(server: Any) -> None:
    document = server.get("/openapi.json").json()
    paths = {"/health", "/metrics", "/v1/models", "/v1/models/{name}", "/v1/chat/completions", "/v1/completions"}
    assert set(document["paths"]) == paths
    assert "422" not in str(document["paths"])


@pytest.fixture(scope="module")
def short(serve: Callable[..., AbstractContextManager[Any]], base_folder: Path) -> Iterator[Any]:
    """Return a server with a small context, because many of the requests would fill it."""
    with serve(str(base_folder), "--max-model-len", "32") as server:
        yield server


def test_schemathesis_finds_no_fault(short: Any, tmp_path: Path) -> None:
    """No 5xx, and every answer is one that the document lists."""
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    words = [f"{short.url}/openapi.json", "--checks", checks, "--phases", "examples,coverage,fuzzing"]
    limits = ["--max-examples", "10", "--seed", "1", "--generation-deterministic", "--request-timeout", "60"]
    schemathesis = Path(sys.executable).with_name("schemathesis")
    run = subprocess.run([schemathesis, "run", *words, *limits], capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
