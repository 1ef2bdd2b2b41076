"""Limits of a body: its size, depth, counts, and text. Generated bodies, for the functions that the routes use."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.exceptions import RequestValidationError
from hone_server.protocol import bounds
from hone_server.protocol.bodies import parse_body, parse_json
from hone_server.protocol.errors import ApiError
from hone_server.protocol.requests import ChatRequest, CompletionRequest
from hypothesis import given
from hypothesis import strategies as st

MOST_PROMPTS = 320
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
PART = {"type": "text", "text": ""}
CHAT = {
    "model": "m",
    "messages": [{"role": "user", "content": "hello", "name": "n"}, {"role": "user", "content": [{"text": "a"}]}],
    "stop": ["x"],
    "metadata": {"a": {"b": ["c"]}},
    "user": "me",
}


def refusal(content: Any, model: Any = ChatRequest) -> Any:
    with pytest.raises(ApiError) as caught:
        parse_body(content if isinstance(content, bytes) else json.dumps(content).encode(), model, MOST_PROMPTS)
    assert caught.value.status == 400
    return caught.value


def places_of(value: Any, place: Any = ()) -> Iterator[Any]:
    """Return the paths of all texts in a JSON value."""
    if isinstance(value, str):
        yield place
    elif isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places_of(inner, (*place, key))


def replaced(value: Any, place: Any, new: Any) -> Any:
    if not place:
        return new
    copied = value.copy()
    copied[place[0]] = replaced(value[place[0]], place[1:], new)
    return copied


@given(place=st.sampled_from(list(places_of(CHAT))), before=TEXT, after=TEXT, half=st.integers(0xD800, 0xDFFF))
def test_half_of_a_surrogate_pair_is_refused_by_the_name_of_its_field(
    place: Any, before: Any, after: Any, half: Any
) -> None:
    error = refusal(replaced(CHAT, place, before + chr(half) + after))
    assert error.param == place[0]
    assert ".".join(map(str, place)) in error.message
    error.message.encode()


@given(half=st.integers(0xD800, 0xDFFF))
def test_half_of_a_surrogate_pair_is_refused_in_a_key_and_as_bytes(half: Any) -> None:
    assert refusal({**CHAT, "metadata": {chr(half): 1}}).param == "metadata"
    raw = b'{"model": "' + chr(half).encode("utf-8", "surrogatepass") + b'"}'
    assert "not valid utf-8" in refusal(raw).message


@given(text=st.text(st.characters(min_codepoint=0x10000), min_size=1, max_size=4))
def test_whole_surrogate_pairs_are_characters(text: Any) -> None:
    body = {**CHAT, "messages": [{"role": "user", "content": text}]}
    assert parse_body(json.dumps(body).encode(), ChatRequest).messages[0].content == text


@given(
    field=st.sampled_from(["messages", "metadata", "stop", "tools", "anything"]),
    depth=st.sampled_from([bounds.MAX_JSON_DEPTH, 600, 100_000]),
    kind=st.sampled_from([("[", "]"), ('{"a":', "}"), ('[{"a]":', "}]")]),
)
def test_a_body_nested_too_deep_is_refused_with_the_name_of_its_field(field: Any, depth: Any, kind: Any) -> None:
    opening, closing = kind
    error = refusal(f'{{"model": "m{{", "{field}" : {opening * depth}1{closing * depth}, "user": "x"}}'.encode())
    assert error.param == field
    assert str(bounds.MAX_JSON_DEPTH) in error.message


def test_brackets_in_text_do_not_count_as_depth() -> None:
    text = '\\"[{' * 500
    body = {**CHAT, "messages": [{"role": "user", "content": text}]}
    assert parse_body(json.dumps(body).encode(), ChatRequest).messages[0].content == text


@pytest.mark.parametrize(
    ("model", "body", "param", "bound"),
    [
        (ChatRequest, {"messages": [{"role": "user", "content": "x"}] * 2049}, "messages", 2048),
        (ChatRequest, {"messages": [{"role": "user", "content": [PART] * 2049}]}, "messages", 2048),
        (ChatRequest, {"stop": ["x"] * 65}, "stop", 64),
        (ChatRequest, {"stop": "x" * 257}, "stop", 256),
        (CompletionRequest, {"stop": ["a", "x" * 257]}, "stop", 256),
        (CompletionRequest, {"logit_bias": {str(token): 1 for token in range(1025)}}, "logit_bias", 1024),
        (CompletionRequest, {"prompt": ["x"] * 321}, "prompt", 320),
        (CompletionRequest, {"prompt": [[1]] * 100_000}, "prompt", 320),
        (CompletionRequest, {"prompt": [1] * 300_000}, None, bounds.MAX_PROMPT_VALUES),
        (ChatRequest, {"metadata": {str(key): 1 for key in range(70_000)}}, None, bounds.MAX_VALUES),
        (ChatRequest, {"metadata": [""] * 140_000}, None, bounds.MAX_VALUES),
    ],
)  # fmt: skip
def test_a_body_above_a_limit_is_refused_with_the_limit(
    model: Any, body: dict[str, Any], param: str | None, bound: Any
) -> None:
    base = {"model": "m"} | ({"prompt": "x"} if model is CompletionRequest else {"messages": CHAT["messages"]})
    error = refusal(base | body, model)
    assert error.param == param
    assert str(bound) in error.message


def test_a_body_at_its_limit_is_accepted() -> None:
    chat = {
        "model": "m",
        "messages": [{"role": "user", "content": "x"}] * bounds.MAX_MESSAGES,
        "stop": ["x" * bounds.MAX_STOP_CHARACTERS] * bounds.MAX_STOPS,
        "logit_bias": {str(token): 1 for token in range(bounds.MAX_LOGIT_BIAS)},
    }
    assert len(parse_body(json.dumps(chat).encode(), ChatRequest).messages) == bounds.MAX_MESSAGES
    tokens = {"model": "m", "prompt": [1] * 131_072}
    assert len(parse_body(json.dumps(tokens).encode(), CompletionRequest, MOST_PROMPTS).prompt) == 131_072


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | TEXT,
        lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
    )
)
def test_any_json_is_read_as_it_is(value: Any) -> None:  # fmt: skip
    content = json.dumps(value)
    assert json.dumps(parse_json(content.encode(), bounds.MAX_VALUES)) == content


@given(st.binary(max_size=64) | st.text('[]{}",:\\u0d8 ', max_size=64).map(str.encode))
def test_anything_else_is_refused_without_a_failure(content: Any) -> None:
    with pytest.raises((ApiError, RequestValidationError)):
        parse_body(content, ChatRequest)


@pytest.mark.parametrize("digits", [4301, 100_000])
def test_a_number_of_too_many_digits_is_refused(digits: int) -> None:
    assert "number" in refusal(b'{"model": "m", "seed": ' + b"1" * digits + b"}").message
