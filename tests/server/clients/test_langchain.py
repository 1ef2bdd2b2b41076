"""langchain-openai against the engine."""

import json
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI
from openai import BadRequestError, NotFoundError


@pytest.fixture(scope="module")
def model(endpoint: Any) -> Any:
    options = {"max_retries": 0, "timeout": 60, "temperature": 0, "max_tokens": 12}
    return ChatOpenAI(model=endpoint.model, base_url=endpoint.url, api_key=endpoint.key, **options)


def test_chats_with_usage(model: Any, endpoint: Any, answers: Any) -> None:
    answer = model.invoke("hello world")
    assert answer.content == answers["question"]
    prompt = endpoint.count([{"role": "user", "content": "hello world"}])
    assert answer.usage_metadata["input_tokens"] == prompt
    assert answer.usage_metadata["output_tokens"] == 12


def test_streams_with_usage(model: Any, answers: Any) -> None:
    chunks = list(model.stream("hello world", stream_usage=True))
    assert len(chunks) > 3
    assert "".join(chunk.content for chunk in chunks) == answers["question"]
    assert [chunk.usage_metadata["output_tokens"] for chunk in chunks if chunk.usage_metadata] == [12]


def test_a_history_with_tool_calls(model: Any, history: Any, answers: Any) -> None:
    [question, called, result] = history
    call = called["tool_calls"][0]
    arguments = json.loads(call["function"]["arguments"])
    messages = [
        HumanMessage(question["content"]),
        AIMessage("", tool_calls=[{"id": call["id"], "name": "weather", "args": arguments}]),
        ToolMessage(result["content"], tool_call_id=call["id"]),
    ]
    assert model.invoke(messages).content == answers["history"]


def test_an_error_has_the_reason(model: Any) -> None:
    with pytest.raises(BadRequestError, match="maximum context length is 2048 tokens"):
        model.invoke("hello", max_tokens=100_000)
    with pytest.raises(NotFoundError, match="model 'nobody' does not exist"):
        model.invoke("hello", model="nobody")
