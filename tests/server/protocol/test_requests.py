"""Contents of requests that are accepted, and the messages about others. No server: only the pydantic models."""

import copy
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hone_server.http.cors import parse_origins
from hone_server.protocol.errors import ApiError, make_validation_error
from hone_server.protocol.messages import Message
from hone_server.protocol.requests import NEUTRAL_VALUES, ChatRequest, CompletionRequest
from pydantic import ValidationError

CALL = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": null}'}}


def chat(**options: Any) -> Any:
    return read(ChatRequest, {"model": "m", "messages": [{"role": "user", "content": "q"}], **options})


def completion(**options: Any) -> Any:
    return read(CompletionRequest, {"model": "m", "prompt": "q", **options})


def read(kind: Any, body: Any) -> Any:
    request = kind.model_validate(body)
    request.refuse_unsupported()
    return request


def refusal(make: Any, **options: Any) -> Any:
    """Return the error that the client gets."""
    with pytest.raises((ValidationError, ApiError)) as raised:
        make(**options)
    error = raised.value
    return error if isinstance(error, ApiError) else make_validation_error(error.errors()[0])


@pytest.mark.parametrize("make", [chat, completion])
def test_null_has_no_effect_for_any_parameter(make: Any) -> None:
    fields = set(ChatRequest.model_fields) | set(CompletionRequest.model_fields) | set(NEUTRAL_VALUES)
    unset = fields - {"model", "messages", "prompt"} | {"reasoning_effort", "audio", "prediction", "a_name_of_tomorrow"}
    request = make(**dict.fromkeys(sorted(unset)))
    assert not request.stop_strings
    make(stream=True, stream_options={"include_usage": None, "include_obfuscation": None, "another": None})


@pytest.mark.parametrize("make", [chat, completion])
def test_neutral_values_have_no_effect(make: Any) -> None:
    kind = ChatRequest if make is chat else CompletionRequest
    for name, values in kind.neutral.items():
        for value in values:
            make(**{name: value})
    assert make(top_p=0).top_p == 0
    assert make(stop="").stop_strings == make(stop=["", ""]).stop_strings == []
    assert make(stop=["", "a"]).stop_strings == ["a"]
    assert make(stream_options={"include_usage": False}).include_usage is False


def test_values_with_an_effect_are_refused_by_name() -> None:
    for name in ChatRequest.neutral.keys() - ChatRequest.model_fields:
        assert refusal(chat, **{name: "something else"}).param == name
    assert refusal(chat, stream=True, stream_options={"chunk_size": 5}).param == "stream_options.chunk_size"
    assert refusal(chat, stream_options={"include_usage": True}).message == "stream_options needs stream: true"


def test_stream_options_of_openai_and_of_vllm_are_accepted() -> None:
    options = {"include_usage": True, "include_obfuscation": False, "continuous_usage_stats": True}
    request = chat(stream=True, stream_options=options)
    assert request.include_usage
    assert request.include_continuous_usage
    assert not chat(stream=True, stream_options={"continuous_usage_stats": True}).include_continuous_usage


def test_no_new_tokens_are_only_for_a_prompt_that_is_returned() -> None:
    assert completion(max_tokens=0, echo=True).max_tokens == 0
    assert "set echo" in refusal(completion, max_tokens=0).message
    assert refusal(chat, max_tokens=0).param == "max_tokens"


def test_false_logprobs_of_a_chat_are_none_in_a_completion() -> None:
    assert completion(logprobs=False).count_top_logprobs() is None
    assert completion(logprobs=0).count_top_logprobs() == 0


@pytest.mark.parametrize("absent", [{}, {"content": None}, {"content": ""}, {"content": []}])
@pytest.mark.parametrize(
    "message",
    [{"role": "assistant", "tool_calls": [CALL]}, {"role": "assistant"}, {"role": "tool", "tool_call_id": "1"}],
)
def test_messages_without_a_text_have_an_empty_one_for_the_template(
    message: dict[str, Any], absent: dict[str, Any]
) -> None:
    [read] = chat(messages=[{**message, **absent}]).messages
    assert read.format_for_template()["content"] == ""


def template_gets(**message: Any) -> Any:
    return Message.model_validate({"role": "assistant", **message}).format_for_template()


def test_the_template_gets_the_arguments_of_tool_calls_as_an_object() -> None:
    expected = [{"id": "1", "type": "function", "function": {"name": "weather", "arguments": {"city": None}}}]
    assert template_gets(content=None, tool_calls=[CALL])["tool_calls"] == expected
    as_object = {**CALL, "function": {"name": "weather", "arguments": {"city": None}}}
    assert template_gets(tool_calls=[as_object])["tool_calls"] == expected
    for text in ("", None, "not JSON", "[1]", "[" * 100_000):
        call = {**CALL, "function": {"name": "weather", "arguments": text}}
        assert template_gets(tool_calls=[call])["tool_calls"][0]["function"]["arguments"] == {}
    old = template_gets(function_call={"name": "weather", "arguments": '{"city": "Paris"}'})
    assert old["tool_calls"][0]["function"] == {"name": "weather", "arguments": {"city": "Paris"}}
    assert "function_call" not in old


def test_the_template_gets_no_nulls_and_no_empty_calls() -> None:
    """Templates check whether a message has a key, not whether it is null."""
    echoed = {"content": "Hi", "refusal": None, "annotations": None, "audio": None, "function_call": None}
    for calls in (None, []):
        assert template_gets(**echoed, tool_calls=calls) == {"role": "assistant", "content": "Hi"}
    assert template_gets(content="Hi", name="Ann", reasoning_content="Hm") == {
        "role": "assistant",
        "content": "Hi",
        "name": "Ann",
        "reasoning_content": "Hm",
    }


def test_parts_of_all_text_kinds_are_one_text() -> None:
    parts = [{"type": kind, "text": kind[0], "annotations": []} for kind in ("text", "input_text", "output_text")]
    assert template_gets(content=[*parts, {"type": "refusal", "refusal": "!"}])["content"] == "tio!"


@pytest.mark.parametrize(
    ("make", "options", "param", "message"),
    [
        (chat, {"stop": ["a", 5]}, "stop", "stop: must be a text or a list of texts; item 1 is a number"),
        (chat, {"stop": {"a": 1}}, "stop", "stop: must be a text or a list of texts; got an object"),
        (chat, {"logprobs": 5}, "logprobs", "top_logprobs is the number"),
        (completion, {"prompt": [3, -1]}, "prompt", "prompt: item 1 is -1, and a token is a whole number from 0"),
        (completion, {"prompt": [[1], [2, -7]]}, "prompt", "prompt: item 1 of list 1 is -7"),
        (completion, {"prompt": ["a", 1]}, "prompt", "this list holds a number and a text"),
        (completion, {"prompt": None}, "prompt", "got null"),
        (completion, {"prompt": [[1], [1.5]]}, "prompt", "item 0 of list 1 is a number"),
    ],
)
def test_an_error_is_about_the_alternative_that_the_client_meant(
    make: Any, options: dict[str, Any], param: str, message: str
) -> None:
    error = refusal(make, **options)
    assert (error.status, error.param) == (400, param)
    assert message in error.message


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({"role": "user"}, "messages.0.content: a message of role 'user' needs a text"),
        ({"role": "system", "content": None}, "messages.0.content: a message of role 'system' needs a text"),
        ({"role": "user", "content": {"text": "{Hi}"}}, "must be a text or a list of parts"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, "part 0 is of type 'image_url', and"),
        ({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "{x}"}]}, "part 1 is of type '{x}'"),
        ({"role": "user", "content": [{"text": "a"}]}, "part 0 has no type"),
        ({"role": "user", "content": [{"type": {}, "refusal": ""}]}, "part 0 has no type"),
        ({"role": "user", "content": [{"type": "text"}]}, "part 0 is of type 'text' and needs a text as 'text'"),
        ({"role": "user", "content": ["a"]}, "part 0 must be an object"),
        ({"content": "a"}, "messages.0.role: Field required"),
        ("a", "messages.0: must be a JSON object"),
        ({"role": "assistant", "function_call": {"arguments": "{}"}}, "messages.0.function_call.name: Field required"),
        ({"role": "assistant", "function_call": {"name": 5}}, "messages.0.function_call.name: Input should be a valid"),
        (
            {"role": "assistant", "function_call": {"name": "f", "arguments": [1]}},
            "function_call.arguments: must be JSON",
        ),
        ({"role": "assistant", "function_call": "auto"}, "messages.0.function_call: must be a JSON object"),
        ({"role": "assistant", "tool_calls": {}}, "messages.0.tool_calls: Input should be a valid list"),
        ({"role": "assistant", "tool_calls": [{"type": "custom"}]}, "messages.0.tool_calls.0.type: Input should be"),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": [1]}}]},
            "messages.0.tool_calls.0.function.arguments: must be JSON text",
        ),
    ],
)
def test_an_error_names_the_message_and_the_part(message: dict[str, Any] | str, words: str) -> None:
    error = refusal(chat, messages=[message])
    assert error.param == "messages"
    assert words in error.message


@pytest.mark.parametrize("value", [True, 5, -1.5, "text", [], [1], ["a"], [[]], [{}], {}, {"a": 1}])
def test_no_error_names_an_alternative_inside_the_server(value: Any) -> None:
    for make, kind in ((chat, ChatRequest), (completion, CompletionRequest)):
        for name in kind.model_fields:
            try:
                make(**{name: value})
            except ApiError:
                continue
            except ValidationError as raised:
                error = make_validation_error(raised.errors()[0])
                assert error.param == name
                for inside in ("[", ".str", ".list", "constrained", "instance of", "dictionary"):
                    assert inside not in error.message


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
RICH = {
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "q"}]},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "assistant", "content": None, "function_call": {"name": "weather", "arguments": "{}"}},
    ],
    "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}},
    "tools": [{"type": "function", "function": {"name": "weather"}}],
    "tool_choice": {"type": "function", "function": {"name": "weather"}},
    "stream": True,
    "stream_options": {"include_usage": True},
}


def objects_in(value: Any) -> Iterator[Any]:
    """Yield every JSON object in the value that the API defines, without those of a client's schema."""
    if isinstance(value, dict):
        yield value
        for name, inner in value.items():
            if name not in ("schema", "parameters"):
                yield from objects_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from objects_in(inner)


def test_null_has_no_effect_in_every_object_of_a_request() -> None:
    formats = [{"type": "text"}, {"type": "json_object"}, RICH["response_format"]]
    for response_format in formats:
        body = copy.deepcopy({**RICH, "response_format": response_format})
        without = chat(**copy.deepcopy(body)).response_format
        for place, _ in enumerate(list(objects_in(body))):
            changed = copy.deepcopy(body)
            one = list(objects_in(changed))[place]
            for name in (
                "a_name_of_tomorrow",
                "json_schema",
                "schema",
                "description",
                "strict",
                "title",
                "cache_control",
            ):
                one.setdefault(name, None)
            assert chat(**changed).response_format == without


@pytest.mark.parametrize(
    ("written", "read_as"),
    [
        ({"type": "json_object", "schema": SCHEMA}, SCHEMA),
        ({"type": "json_object", "schema": {}}, None),
        ({"type": "json_schema", "schema": SCHEMA}, SCHEMA),
        ({"type": "json_schema", "name": "a", "strict": True, "schema": SCHEMA}, SCHEMA),
    ],
)
def test_a_schema_next_to_the_type_is_that_of_the_answer(written: dict[str, Any], read_as: Any) -> None:
    found = chat(response_format=written).response_format
    assert (found.json_schema.form if found.type == "json_schema" else None) == read_as


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("json", "response_format: must be an object"),
        ({}, "got null"),
        ({"type": "{x}"}, "the type must be 'text', 'json_object' or 'json_schema'; got '{x}'"),
        ({"type": "text", "json_schema": {}}, "json_schema is for the type 'json_schema', and the type is 'text'"),
        ({"type": "json_schema"}, "response_format.json_schema: Field required"),
        ({"type": "json_schema", "json_schema": {"name": "a", "schema": None}}, "response_format.json_schema.schema: "),
        ({"type": "json_object", "x": 1}, "response_format.x: "),
    ],
)
def test_an_error_of_the_response_format_names_the_place(value: dict[str, Any] | str, words: str) -> None:
    error = refusal(chat, response_format=value)
    assert error.param == "response_format"
    assert words in error.message


@pytest.mark.parametrize(("make", "kind"), [(chat, ChatRequest), (completion, CompletionRequest)])
def test_the_alternative_to_a_parameter_is_accepted(make: Any, kind: Any) -> None:
    routes = {"/v1/chat/completions": ChatRequest, "/v1/completions": CompletionRequest}
    for name, remedy in kind.remedies.items():
        if name in kind.model_fields:
            continue
        error = refusal(make, **{name: ["something"]})
        assert (error.param, error.code) == (name, "unsupported_parameter")
        assert error.message.endswith(f"; {remedy}")
        fields = set(ChatRequest.model_fields) | set(CompletionRequest.model_fields)
        named = {one for one in re.findall(r"[\w/]+", remedy) if one.startswith("/") or one in fields}
        for one in named:
            other = next((request for route, request in routes.items() if route in remedy), kind)
            assert one in routes or one in other.model_fields, (name, remedy, one)
        assert named


def test_the_prompt_of_the_other_route_names_that_route() -> None:
    for kind, body in (
        (CompletionRequest, {"messages": [{"role": "user", "content": "q"}]}),
        (CompletionRequest, {"messages": [], "prompt": None}),
        (ChatRequest, {"prompt": "q"}),
        (ChatRequest, {"input": "q"}),
    ):
        with pytest.raises(ApiError, match=r"use (/v1/|messages)"):
            kind.model_validate({"model": "m", **body})


@pytest.mark.parametrize(
    "text", ["https://a.example", '["https://a.example/path"]', "[5]", '["a.example"]', '{"a": 1}']
)
def test_origins_that_are_none_are_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="origin"):
        parse_origins(text)


def test_origins_are_read_as_vllm_reads_them() -> None:
    for origins in (["*"], [], ["https://a.example", "http://localhost:3000"]):
        assert parse_origins(str(origins).replace("'", '"')) == origins


FINITE_FIELDS = ["temperature", "top_p", "presence_penalty", "frequency_penalty", "repetition_penalty"]


@pytest.mark.parametrize("make", [chat, completion])
@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_not_finite_are_refused_as_such(make: Any, number: float) -> None:
    for values in ({name: number} for name in FINITE_FIELDS):
        [name] = values
        assert refusal(make, **values).message == f"{name}: Input should be a finite number"
    assert refusal(make, logit_bias={"1": number}).message == "logit_bias.1: Input should be a finite number"
