"""litellm against the engine, as `openai/<model>`."""

import os
from typing import Any

import pytest

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # otherwise its import sends a request to the internet

import litellm

MESSAGES = [{"role": "user", "content": "hello world"}]


@pytest.fixture(scope="module")
def complete(endpoint: Any) -> Any:
    settings = {"api_base": endpoint.url, "api_key": endpoint.key, "max_retries": 0, "timeout": 60}

    def call(messages: Any, **options: Any) -> Any:
        request = {"model": f"openai/{endpoint.model}", "temperature": 0, "max_tokens": 12, **settings, **options}
        return litellm.completion(messages=messages, **request)

    return call


def test_chats_with_usage(complete: Any, endpoint: Any, answers: Any) -> None:
    answer = complete(MESSAGES)
    assert answer.choices[0].message.content == answers["question"]
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (endpoint.count(MESSAGES), 12)


def test_streams_with_usage(complete: Any, answers: Any) -> None:
    chunks = list(complete(MESSAGES, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == answers["question"]
    assert chunks[-1].usage.completion_tokens == 12


def test_a_history_with_tool_calls(complete: Any, history: Any, answers: Any) -> None:
    assert complete(history).choices[0].message.content == answers["history"]


def test_an_error_has_the_reason(complete: Any) -> None:
    with pytest.raises(litellm.ContextWindowExceededError, match="maximum context length is 2048 tokens"):
        complete(MESSAGES, max_tokens=100_000)
    with pytest.raises(litellm.AuthenticationError, match="needs an API key"):
        complete(MESSAGES, api_key="another")
