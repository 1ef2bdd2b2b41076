"""OpenAI's Python client as an agent uses it; test_api.py and others use it for everything else."""

from typing import Any

import openai
import pytest

SETTINGS = {"max_tokens": 12, "temperature": 0}


@pytest.fixture(scope="module")
def client(endpoint: Any) -> Any:
    return openai.OpenAI(base_url=endpoint.url, api_key=endpoint.key, max_retries=0, timeout=60)


def test_chats_and_streams(client: Any, endpoint: Any, answers: Any) -> None:
    request = {"model": endpoint.model, "messages": [{"role": "user", "content": "hello world"}], **SETTINGS}
    whole = client.chat.completions.create(**request)
    assert whole.choices[0].message.content == answers["question"]
    assert whole.usage.completion_tokens == 12
    chunks = list(client.chat.completions.create(**request, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == answers["question"]
    assert chunks[-1].usage == whole.usage


def test_a_history_with_tool_calls(client: Any, endpoint: Any, history: Any, answers: Any) -> None:
    answer = client.chat.completions.create(model=endpoint.model, messages=history, **SETTINGS)
    assert answer.choices[0].message.content == answers["history"]


def test_its_own_message_objects_are_a_history(client: Any, endpoint: Any) -> None:
    """They have a key for everything that OpenAI may answer, and most values are null."""
    messages = [{"role": "user", "content": "hello world"}]
    message = client.chat.completions.create(model=endpoint.model, messages=messages, **SETTINGS).choices[0].message
    own = [*messages, message, {"role": "user", "content": "hello"}]
    plain = [*messages, {"role": "assistant", "content": message.content}, {"role": "user", "content": "hello"}]
    answer = client.chat.completions.create(model=endpoint.model, messages=own, **SETTINGS)
    assert answer.choices[0].message.content == endpoint.expected(plain, 12)


def test_an_error_has_the_reason(client: Any, endpoint: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="maximum context length is 2048 tokens") as raised:
        client.chat.completions.create(
            model=endpoint.model, messages=[{"role": "user", "content": "hello"}], max_tokens=100_000
        )
    assert (raised.value.code, raised.value.param) == ("context_length_exceeded", "max_tokens")
