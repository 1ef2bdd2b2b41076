"""Structured answers of random models: JSON by schema, and tool calls in the models' formats."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

import jsonschema_rs
import openai
import pytest
from hypothesis import given, settings
from json_schemas import schemas
from pydantic import BaseModel, Field
from tool_call_tokens import add_tokens
from transformers import PreTrainedTokenizerFast

HEAD = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] or '' }}{% for c in m['tool_calls'] or [] %}"
TAIL = "{% endfor %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
TEMPLATES = {
    "hermes": "{% if tools %}Tools: {{ tools | tojson }} Answer with <tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>{% endif %}' + HEAD + TAIL,
    "llama": "{% if tools %}Environment: ipython {{ tools | tojson }} Answer with "
    '{"name": function name, "parameters": dictionary of argument name and its value}{% endif %}' + HEAD + TAIL,
    "mistral": "{% if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}{% endif %}"
    + HEAD
    + "[TOOL_CALLS] [{{ c }}]"
    + TAIL,
}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 8},
                "days": {"type": "integer", "minimum": 1, "maximum": 99},
            },
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
NOW = {"type": "function", "function": {"name": "now"}}
TOOLS = [WEATHER, NOW]
ARGUMENTS = {"get_weather": WEATHER["function"]["parameters"], "now": {"type": "object", "maxProperties": 0}}
QUESTION = [{"role": "user", "content": "hello world, how are you today?"}]


@pytest.fixture(scope="module")
def tools_server(
    serve: Callable[..., AbstractContextManager[Any]],
    model_maker: Callable[..., Path],
    adapter_maker: Callable[..., Path],
    tokenizer_maker: Callable[[], PreTrainedTokenizerFast],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Any]:
    """Return a base, and adapters whose tokenizers have the templates: one model for each tool call format."""
    work = tmp_path_factory.mktemp("tools")
    tokenizers = {name: add_tokens(tokenizer_maker()) for name in TEMPLATES}
    tokenizers |= {"hermes-in-letters": tokenizer_maker(), "plain": tokenizer_maker()}
    for name, tokenizer in tokenizers.items():
        tokenizer.chat_template = TEMPLATES.get(name.partition("-")[0], tokenizer.chat_template)
    base = model_maker(work / "base", tokenizer=tokenizers["hermes"])
    arguments = []
    for seed, (name, tokenizer) in enumerate(tokenizers.items()):
        folder = adapter_maker(work / name, base, seed=seed)
        tokenizer.save_pretrained(folder)
        arguments += ["--adapter", f"{name}={folder}"]
    with serve(str(base), *arguments) as running:
        yield running


@pytest.fixture(scope="module")
def asked(tools_server: Any) -> openai.OpenAI:
    return tools_server.client()


def ask(client: openai.OpenAI, model: str, **parameters: Any) -> Any:
    options = {"messages": QUESTION, "max_tokens": 1000, "seed": 1, "temperature": 1, **parameters}
    return client.chat.completions.create(model=model, **options)


def json_schema(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}


def check_calls(calls: Any, *, names: tuple[str, ...] = ("get_weather", "now")) -> None:
    for call in calls:
        assert call.type == "function"
        assert call.function.name in names
        jsonschema_rs.validate(ARGUMENTS[call.function.name], json.loads(call.function.arguments))
    assert len({call.id for call in calls}) == len(calls)


def joined(stream: Any) -> tuple[str, list[dict[str, Any]], list[str]]:
    """Return the content, the calls and the finish reasons of a stream, assembled as a client does."""
    content, calls, reasons = "", list[dict[str, Any]](), []
    for chunk in stream:
        [choice] = chunk.choices
        content += choice.delta.content or ""
        for part in choice.delta.tool_calls or []:
            if part.id is not None:
                assert part.index == len(calls)
                assert part.type == "function"
                calls.append({"name": part.function.name, "arguments": ""})
            calls[part.index]["arguments"] += part.function.arguments
        reasons += [choice.finish_reason] if choice.finish_reason else []
    return content, calls, reasons


def test_json_object_is_an_object_of_json(asked: openai.OpenAI) -> None:
    answers = (
        ask(asked, "base", response_format={"type": "json_object"}, seed=seed, max_tokens=200).choices[0]
        for seed in range(20)
    )
    ended = next(answer for answer in answers if answer.finish_reason == "stop")
    assert isinstance(json.loads(ended.message.content), dict)


def test_text_format_changes_nothing(asked: openai.OpenAI) -> None:
    plain = ask(asked, "base", max_tokens=20)
    formatted = ask(asked, "base", max_tokens=20, response_format={"type": "text"})
    assert formatted.choices[0].message.content == plain.choices[0].message.content


@settings(max_examples=20, deadline=None, derandomize=True)
@given(schema=schemas())
def test_answers_of_a_random_model_are_valid_by_their_schema(asked: openai.OpenAI, schema: dict[str, Any]) -> None:
    choice = ask(asked, "base", response_format=json_schema(schema), max_tokens=1800).choices[0]
    assert choice.finish_reason == "stop"
    jsonschema_rs.validate(schema, json.loads(choice.message.content))


def test_completions_take_a_response_format_too(asked: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"sure": {"type": "boolean"}}, "required": ["sure"]}
    body = json_schema({**schema, "additionalProperties": False})
    answer = asked.completions.create(
        model="base", prompt=["Hi", "You"], max_tokens=200, n=2, extra_body={"response_format": body}
    )
    assert len(answer.choices) == 4
    for choice in answer.choices:
        jsonschema_rs.validate(schema, json.loads(choice.text))


def test_a_streamed_structured_answer_equals_the_complete_one(asked: openai.OpenAI) -> None:
    form = json_schema(WEATHER["function"]["parameters"])
    whole = ask(asked, "base", response_format=form)
    assert joined(ask(asked, "base", response_format=form, stream=True)) == (
        whole.choices[0].message.content,
        [],
        ["stop"],
    )


def test_the_client_parses_into_a_pydantic_model(asked: openai.OpenAI) -> None:
    class Weather(BaseModel):
        kind: Literal["rain", "sun"]
        degrees: int = Field(ge=-50, le=50)
        places: list[Literal["here", "there"]] = Field(max_length=3)

    answer = asked.chat.completions.parse(model="base", messages=QUESTION, response_format=Weather, max_tokens=300)
    assert isinstance(answer.choices[0].message.parsed, Weather)


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "string", "format": "postcode"}, "postcode"),
        ({"type": "string", "pattern": "(?=a)b"}, "(?=a)b"),
        ({"$ref": "https://example.com/schema.json"}, "example.com"),
        ({"type": "text"}, "text"),
        ({"enum": ["x" * 200_000]}, "131072"),
        ({"minimum": "low"}, "minimum"),
    ],
)
def test_a_schema_that_cannot_be_enforced_is_refused_with_the_reason(
    tools_server: Any, schema: dict[str, Any], words: str
) -> None:
    body = {"model": "base", "messages": QUESTION, "response_format": json_schema(schema)}
    refused = tools_server.post("/v1/chat/completions", body)
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "response_format"
    assert words in refused.json()["error"]["message"]


def test_a_schema_that_becomes_too_complex_ends_its_own_answer_alone(tools_server: Any) -> None:
    schema = {"type": "string", "pattern": "^((a{100}){100}){100}$"}
    body = {"model": "base", "messages": QUESTION, "response_format": json_schema(schema)}
    refused = tools_server.post("/v1/chat/completions", body)
    assert refused.status_code == 400, refused.text
    assert (
        "too complex" in refused.json()["error"]["message"] or "can't be enforced" in refused.json()["error"]["message"]
    )
    assert tools_server.get("/health").status_code == 200


@pytest.mark.parametrize("model", ["hermes", "hermes-in-letters", "llama", "mistral", "plain"])
@pytest.mark.parametrize("choice", ["required", "get_weather"])
def test_a_required_call_has_valid_arguments(asked: openai.OpenAI, model: str, choice: str) -> None:
    chosen = choice if choice == "required" else {"type": "function", "function": {"name": choice}}
    parameters = {"tools": TOOLS, "tool_choice": chosen, "parallel_tool_calls": choice != "required" and None}
    answer = ask(asked, model, **parameters).choices[0]
    assert answer.finish_reason == "tool_calls"
    assert answer.message.content is None
    assert len(answer.message.tool_calls) == 1
    check_calls(answer.message.tool_calls, names=("get_weather", "now") if choice == "required" else (choice,))
    content, calls, reasons = joined(ask(asked, model, stream=True, **parameters))
    assert (content, reasons) == ("", ["tool_calls"])
    assert calls == [
        {"name": call.function.name, "arguments": call.function.arguments} for call in answer.message.tool_calls
    ]


@pytest.mark.parametrize("model", ["hermes", "llama", "mistral", "plain"])
def test_several_calls_stand_in_one_answer(asked: openai.OpenAI, model: str) -> None:
    for seed in range(20):
        answer = ask(asked, model, tools=[NOW], tool_choice="required", seed=seed, max_tokens=300).choices[0]
        calls = answer.message.tool_calls
        check_calls(calls if answer.finish_reason == "tool_calls" else calls[:-1], names=("now",))
        if len(calls) > 1:
            return
    pytest.fail("no answer of 20 has several calls")


def test_several_answers_have_calls_of_their_own(asked: openai.OpenAI) -> None:
    answer = ask(asked, "hermes", tools=TOOLS, tool_choice="required", parallel_tool_calls=False, n=3, logprobs=True)
    assert len(answer.choices) == 3
    for choice in answer.choices:
        check_calls(choice.message.tool_calls)
        assert choice.logprobs.content


@pytest.mark.parametrize("model", ["hermes", "hermes-in-letters", "llama", "mistral"])
def test_with_auto_the_model_may_answer_in_text(asked: openai.OpenAI, model: str) -> None:
    answer = ask(asked, model, tools=TOOLS, max_tokens=30).choices[0]
    assert answer.finish_reason in ("stop", "length", "tool_calls")
    assert answer.message.content or answer.message.tool_calls
    content, _, _ = joined(ask(asked, model, tools=TOOLS, max_tokens=30, stream=True))
    assert content == (answer.message.content or "")


@pytest.mark.parametrize(("model", "begin"), [("hermes", "<tool_call>"), ("mistral", "[TOOL_CALLS]")])
def test_with_auto_a_call_is_guided_from_its_beginning(
    asked: openai.OpenAI, tokenizer_maker: Callable[[], PreTrainedTokenizerFast], model: str, begin: str
) -> None:
    bias = {str(add_tokens(tokenizer_maker()).convert_tokens_to_ids(begin)): 100}
    answer = ask(asked, model, tools=TOOLS, logit_bias=bias, parallel_tool_calls=False).choices[0]
    assert answer.finish_reason == "tool_calls"
    check_calls(answer.message.tool_calls)


def test_with_auto_the_answer_may_have_a_response_format(asked: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "boolean"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    answer = ask(asked, "hermes", tools=TOOLS, response_format=json_schema(schema)).choices[0]
    if answer.message.tool_calls:
        check_calls(answer.message.tool_calls)
    else:
        jsonschema_rs.validate(schema, json.loads(answer.message.content))


def test_tool_choice_none_leaves_the_tools_out(asked: openai.OpenAI) -> None:
    without = ask(asked, "hermes", max_tokens=20)
    none = ask(asked, "hermes", max_tokens=20, tools=TOOLS, tool_choice="none")
    assert none.usage.prompt_tokens == without.usage.prompt_tokens
    assert none.choices[0].message.content == without.choices[0].message.content
    assert ask(asked, "hermes", max_tokens=20, tools=TOOLS).usage.prompt_tokens > without.usage.prompt_tokens


def test_a_call_that_is_cut_ends_by_its_length(asked: openai.OpenAI) -> None:
    parameters = {"tools": [WEATHER], "tool_choice": "required", "max_tokens": 40}
    answer = ask(asked, "hermes-in-letters", **parameters).choices[0]
    assert answer.finish_reason == "length"
    assert joined(ask(asked, "hermes-in-letters", stream=True, **parameters))[2] == ["length"]


@pytest.mark.parametrize(
    ("model", "parameters", "param", "words"),
    [
        ("plain", {"tools": TOOLS}, "tools", "--tool-call-parser"),
        ("hermes", {"tools": TOOLS, "tool_choice": "always"}, "tool_choice", "'required'"),
        ("hermes", {"tool_choice": "required"}, "tool_choice", "no tools"),
        (
            "hermes",
            {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "sum"}}},
            "tool_choice",
            "get_weather, now",
        ),
        ("hermes", {"tools": [NOW, NOW]}, "tools", "'now'"),
        ("hermes", {"tools": TOOLS, "ignore_eos": True}, "ignore_eos", "tools"),
        ("hermes", {"tools": [{"type": "function", "function": {"name": 'a"b'}}]}, "tools", "name"),
        ("llama", {"tools": TOOLS, "response_format": {"type": "json_object"}}, "response_format", "leave out"),
        ("base", {"response_format": {"type": "xml"}}, "response_format", "json_schema"),
    ],
)
def test_unsupported_combinations_are_refused_by_name(
    tools_server: Any, model: str, parameters: dict[str, Any], param: str, words: str
) -> None:
    refused = tools_server.post("/v1/chat/completions", {"model": model, "messages": QUESTION, **parameters})
    assert refused.status_code == 400, refused.text
    assert refused.json()["error"]["param"] == param
    assert words in refused.json()["error"]["message"]


def test_guided_and_free_answers_share_a_batch(asked: openai.OpenAI) -> None:
    """A guided request does not change the answers of others in its batch."""
    alone = ask(asked, "base", max_tokens=40).choices[0].message.content
    form = json_schema({"type": "array", "items": {"type": "integer", "maximum": 99}, "minItems": 20, "maxItems": 20})
    with ThreadPoolExecutor(8) as pool:
        free = [pool.submit(ask, asked, "base", max_tokens=40) for _ in range(4)]
        guided = [pool.submit(ask, asked, "base", response_format=form, seed=seed) for seed in range(4)]
        assert {one.result().choices[0].message.content for one in free} == {alone}
        for one in guided:
            jsonschema_rs.validate(form["json_schema"]["schema"], json.loads(one.result().choices[0].message.content))


def test_responses_are_refused_with_the_route_to_use(asked: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="/v1/chat/completions"):
        asked.responses.create(model="base", input="Hi")
