"""The Vercel AI SDK against the engine, by its provider for OpenAI-compatible servers."""

import json
import subprocess
from typing import Any

import pytest


@pytest.fixture(scope="module")
def got(javascript: Any, endpoint: Any) -> Any:
    words = ["node", "ai-sdk.mjs", endpoint.url, endpoint.key]
    run = subprocess.run(words, cwd=javascript, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_chats_and_streams_with_usage(got: Any, endpoint: Any, answers: Any) -> None:
    usage = {"input": endpoint.count([{"role": "user", "content": "hello world"}]), "output": 12}
    assert (got["text"], got["usage"], got["finish"]) == (answers["question"], usage, "length")
    assert (got["streamed"], got["streamedUsage"]) == (answers["question"], usage)
    assert got["parts"] > 2


def test_a_history_with_tool_calls(got: Any, answers: Any) -> None:
    assert got["history"] == answers["history"]


def test_an_error_has_the_reason(got: Any) -> None:
    assert got["errors"]["too long"]["status"] == 400
    assert "maximum context length is 2048 tokens" in got["errors"]["too long"]["message"]
    assert got["errors"]["wrong key"]["status"] == 401
    assert "needs an API key" in got["errors"]["wrong key"]["message"]
