"""OpenAI's JavaScript client against the engine: it gets the same answers as the Python client."""

import json
import subprocess
from collections.abc import Callable
from typing import Any

import openai
import pytest


@pytest.fixture(scope="module")
def got(javascript: Any, endpoint: Any) -> Any:
    words = ["node", "openai.mjs", endpoint.url, endpoint.key]
    run = subprocess.run(words, cwd=javascript, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_it_lists_the_models(got: Any) -> None:
    assert got["models"] == [got["model"]] == ["tiny-llama"]


def test_it_gets_the_answers_of_the_python_client(got: Any, endpoint: Any) -> None:
    client = openai.OpenAI(base_url=endpoint.url, api_key=endpoint.key, max_retries=0, timeout=60)
    messages = [{"role": "user", "content": "hello"}]
    settings = {"model": "tiny-llama", "seed": 7, "temperature": 0.8, "max_completion_tokens": 8}
    whole = client.chat.completions.create(messages=messages, n=2, **settings)
    assert got["whole"] == [choice.message.content for choice in whole.choices]
    assert got["streamed"]["text"] == got["helper"] == got["whole"][0]
    assert got["usage"] == whole.usage.model_dump(exclude_none=True)
    assert got["streamed"]["usage"]["prompt_tokens"] == whole.usage.prompt_tokens
    assert got["streamed"]["finish"] == whole.choices[0].finish_reason
    assert set(got["logprobs"]) == {3}
    completion = client.completions.create(model="tiny-llama", prompt="hello", max_tokens=4, temperature=0, echo=True)
    assert got["completion"] == completion.choices[0].text


def test_its_errors_are_those_of_openai(got: Any) -> None:
    assert got["errors"] == {
        "unknown model": {"kind": "NotFoundError", "status": 404, "code": "model_not_found", "param": "model"},
        "too long": {
            "kind": "BadRequestError",
            "status": 400,
            "code": "context_length_exceeded",
            "param": "max_tokens",
        },
        "min_p": {"kind": "BadRequestError", "status": 400, "code": "unsupported_parameter", "param": "min_p"},
        "wrong key": {"kind": "AuthenticationError", "status": 401, "code": "invalid_api_key", "param": None},
    }


def test_leaving_a_stream_takes_it_out_of_the_batch(got: Any, endpoint: Any, until: Callable[..., None]) -> None:
    assert got["left"]
    until(lambda: endpoint.running(endpoint.model) == 0)
