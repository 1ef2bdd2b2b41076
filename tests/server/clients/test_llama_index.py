"""llama-index against the engine, as OpenAILike."""

from typing import Any

import pytest
from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike
from openai import AuthenticationError, BadRequestError

MESSAGES = [ChatMessage(role="user", content="hello world")]


@pytest.fixture(scope="module")
def make(endpoint: Any) -> Any:
    def make(key: Any) -> Any:
        connection = {"api_base": endpoint.url, "api_key": key, "max_retries": 0, "timeout": 60}
        kind = {"is_chat_model": True, "is_function_calling_model": True, "context_window": 2048}
        return OpenAILike(model=endpoint.model, temperature=0, max_tokens=12, **connection, **kind)

    return make


@pytest.fixture(scope="module")
def model(make: Any, endpoint: Any) -> Any:
    return make(endpoint.key)


def test_chats_with_usage(model: Any, endpoint: Any, answers: Any) -> None:
    answer = model.chat(MESSAGES)
    assert answer.message.content == answers["question"] == model.complete("hello world").text
    prompt = endpoint.count([{"role": "user", "content": "hello world"}])
    assert (answer.raw.usage.prompt_tokens, answer.raw.usage.completion_tokens) == (prompt, 12)


def test_streams(model: Any, answers: Any) -> None:
    chunks = list(model.stream_chat(MESSAGES))
    assert "".join(chunk.delta for chunk in chunks) == chunks[-1].message.content == answers["question"]


def test_a_history_with_tool_calls(model: Any, history: Any, answers: Any) -> None:
    [question, called, result] = history
    messages = [
        ChatMessage(role="user", content=question["content"]),
        ChatMessage(role="assistant", content=None, additional_kwargs={"tool_calls": called["tool_calls"]}),
        ChatMessage(role="tool", content=result["content"], additional_kwargs={"tool_call_id": "call_1"}),
    ]
    assert model.chat(messages).message.content == answers["history"]


def test_an_error_has_the_reason(make: Any, model: Any) -> None:
    with pytest.raises(BadRequestError, match="maximum context length is 2048 tokens"):
        model.model_copy(update={"max_tokens": 100_000}).chat(MESSAGES)
    with pytest.raises(AuthenticationError, match="needs an API key"):
        make("another").chat(MESSAGES)
