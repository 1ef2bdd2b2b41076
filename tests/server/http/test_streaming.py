"""Streams: the same text as without streaming, stop strings held back, usage at the end."""

import json
from typing import Any

import httpx
import pytest

ENDLESS = {"extra_body": {"ignore_eos": True}}
MESSAGES = [{"role": "user", "content": "hello world"}]


@pytest.fixture
def stream(client: Any) -> Any:
    def start(**options: Any) -> Any:
        request = {"model": "tiny-llama", "messages": MESSAGES, "max_tokens": 40, "temperature": 0} | ENDLESS | options
        return list(client.chat.completions.create(**request, stream=True))

    return start


def text(chunks: Any) -> Any:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


@pytest.mark.parametrize(
    "options", [{"temperature": 0}, {"temperature": 1, "seed": 3}, {"temperature": 1.5, "seed": 4}]
)
def test_a_stream_has_the_same_text(client: Any, stream: Any, options: dict[str, Any]) -> None:
    whole = client.chat.completions.create(model="tiny-llama", messages=MESSAGES, max_tokens=40, **options, **ENDLESS)
    chunks = stream(**options)
    assert text(chunks) == whole.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert len(chunks) > 10


def test_the_first_chunk_has_the_role_and_only_the_last_a_finish_reason(stream: Any) -> None:
    chunks = stream()
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_stop_string_across_tokens_is_never_sent(stream: Any) -> None:
    whole = text(stream())
    stop = whole[12:18]  # six characters are several tokens in this vocabulary
    chunks = stream(stop=stop)
    assert text(chunks) == whole[: whole.index(stop)]
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_a_stop_string_that_does_not_come_loses_nothing(stream: Any) -> None:
    whole = text(stream())
    assert text(stream(stop=whole[-2:] + "never")) == whole


def test_usage_comes_in_a_chunk_of_its_own(stream: Any) -> None:
    chunks = stream(stream_options={"include_usage": True})
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 40
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_usage_comes_in_every_chunk_if_requested(stream: Any) -> None:
    chunks = stream(stream_options={"include_usage": True, "continuous_usage_stats": True, "include_obfuscation": True})
    told = [chunk.usage.completion_tokens for chunk in chunks]
    assert told == sorted(told)
    assert (told[0], told[-1]) == (1, 40)
    assert {chunk.usage.prompt_tokens for chunk in chunks} == {chunks[-1].usage.prompt_tokens}


def test_several_choices_stream_in_parallel(client: Any, stream: Any) -> None:
    whole = client.chat.completions.create(model="tiny-llama", messages=MESSAGES, max_tokens=20, n=3, seed=1, **ENDLESS)
    chunks = stream(n=3, seed=1, temperature=1, max_tokens=20)
    for choice in whole.choices:
        own = [chunk for chunk in chunks if chunk.choices[0].index == choice.index]
        assert text(own) == choice.message.content


def test_completions_stream_too(client: Any) -> None:
    request = {"model": "tiny-llama", "prompt": ["hello", "we tune"], "max_tokens": 20, "temperature": 0}
    whole = client.completions.create(**request)
    told = ["", ""]
    for chunk in client.completions.create(**request, stream=True):
        told[chunk.choices[0].index] += chunk.choices[0].text
    assert told == [choice.text for choice in whole.choices]


def test_the_stream_is_server_sent_events_and_ends_with_done(server: Any) -> None:
    body = {"model": "tiny-llama", "prompt": "hello", "max_tokens": 3, "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in answer.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    assert all(json.loads(line.removeprefix("data: "))["object"] == "text_completion" for line in lines[:-1])
