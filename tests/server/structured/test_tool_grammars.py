"""The parser reads every answer that the grammars of tool calls allow.

No server: llguidance returns the tokens that may come next, one is chosen at random, and the answer is formatted as the
API does, streamed and at once.
"""

import json
import random
from typing import Any

import pytest
from hone_server.engine.continuous_batching import TokenBatch
from hone_server.engine.sampler import SamplingParams
from hone_server.generation.detokenizer import StopStringSet
from hone_server.generation.generate import GenerationTask, ServedModel, _OutputProcessor
from hone_server.http.formatting import ToolCallFormatter
from hone_server.protocol.functions import Function
from hone_server.protocol.requests import ChatRequest
from hone_server.structured.grammars import AnswerStructure, build_structure
from hone_server.structured.tool_formats import HERMES, LLAMA3, MISTRAL, TOOL_CALL_MARKERS, ToolCallFormat
from hone_server.structured.vocabulary import make_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from inprocess import Service
from llguidance import LLMatcher
from long_matrix import sample
from pydantic import ValidationError
from tool_call_tokens import add_tokens

EOS = 2
QUESTION = [{"role": "user", "content": "q"}]
CITY = {"type": "string", "maxLength": 3}
WEATHER = {"type": "object", "properties": {"city": CITY}, "required": ["city"], "additionalProperties": False}
ANSWER = {"const": "use <tool_call> or [TOOL_CALLS] [ as tags"}
STOPS = [[], ['"city"'], [","], ["}"], ["]"], ["</tool_call>"], ["\n"], ['"'], ["tool"], ["TOOL_CALLS"], ["; "], [": "]]


@pytest.fixture(scope="module")
def models(tokenizer_maker: Any) -> dict[str, ServedModel]:
    """Models whose vocabulary has a token for each mark, and models without."""
    made = {"tokens": add_tokens(tokenizer_maker()), "letters": tokenizer_maker()}
    return {name: Service(tokenizer).only for name, tokenizer in made.items()}


def structure(model: ServedModel, form: ToolCallFormat, **fields: Any) -> AnswerStructure:
    request = ChatRequest.model_validate({"model": "m", "messages": QUESTION, **fields})
    added = {token.content: number for number, token in model.tokenizer.added_tokens_decoder.items()}
    free = [number for text, number in added.items() if "think" in text and text not in TOOL_CALL_MARKERS]
    return build_structure(request, form, added.get, free)


def matcher_of(model: ServedModel, made: AnswerStructure) -> LLMatcher:
    vocabulary = make_tokenizer(model.tokenizer.backend_tokenizer.to_str(), len(model.tokenizer), [EOS])
    return LLMatcher(vocabulary, json.dumps({"grammars": made.grammar}), log_level=0)


def walk(model: ServedModel, matcher: LLMatcher, chance: random.Random, begins: list[int]) -> list[int]:
    """Return tokens of an answer that the grammar allows: some text, tokens of `begins` if allowed, a short end."""
    assert not matcher.is_error(), matcher.get_error()
    ids: list[int] = []
    closing = {model.tokenizer.convert_tokens_to_ids(letter) for letter in '"}],'}
    while len(ids) < 400 and not matcher.is_stopped():
        mask = int.from_bytes(matcher.compute_bitmask(), "little")
        allowed = [token for token in range(len(model.tokenizer)) if mask >> token & 1]
        wanted = [token for token in allowed if token in begins or (len(ids) > 6 and token in closing)]
        token = begins.pop(0) if begins and begins[0] in allowed else chance.choice(wanted or allowed)
        if len(ids) > 6 and EOS in allowed and not begins:
            token = EOS
        ids.append(token)
        assert matcher.consume_token(token), matcher.get_error()
    return ids


def format_both_ways(
    model: ServedModel, made: AnswerStructure, ids: list[int], stops: list[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the answer as the API formats it at once, and as a client assembles a stream."""
    form = made.tool_call_format
    assert form is not None
    job = GenerationTask(
        [1],
        SamplingParams(1, 1, 0, 0),
        400,
        StopStringSet(stops),
        False,
        keeps_special_tokens=bool(form.trigger),
        tool_call_trigger=made.trigger_token,
    )
    object.__setattr__(model.handle, "eos_token_ids", frozenset({EOS}))
    piece = _OutputProcessor(model, job, 0, stream=False).push(TokenBatch(ids, is_last=True))
    assert piece is not None
    whole = ToolCallFormatter(form, made.function_names, made.calls_begin).format_choice(piece)
    calls = [call["function"] for call in whole["message"].get("tool_calls", [])]
    first = {"content": whole["message"]["content"] or "", "calls": calls, "finish": whole["finish_reason"]}
    answer, wire = (
        _OutputProcessor(model, job, 0, stream=True),
        ToolCallFormatter(form, made.function_names, made.calls_begin),
    )
    streamed: dict[str, Any] = {"content": "", "calls": [], "finish": None}
    for place, token in enumerate(ids):
        piece = answer.push(TokenBatch([token], is_last=place == len(ids) - 1))
        for choice in [] if piece is None else wire.format_deltas(piece, first=False):
            streamed["content"] += choice["delta"].get("content", "")
            for part in choice["delta"].get("tool_calls", []):
                if "id" in part:
                    streamed["calls"].append({"name": part["function"]["name"], "arguments": ""})
                streamed["calls"][part["index"]]["arguments"] += part["function"]["arguments"]
            streamed["finish"] = choice["finish_reason"] or streamed["finish"]
        if streamed["finish"]:
            break
    return first, streamed


def is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


CASES = [
    (vocabulary, form, choice, begins, has_answer, stops)
    for vocabulary in ("tokens", "letters")
    for form in (HERMES, LLAMA3, MISTRAL)
    for choice in ("auto", "required")
    for begins in ("text", "call", "text, then call", "the trigger in letters")
    for has_answer in (False, True)
    for stops in STOPS
    if not (has_answer and (form is LLAMA3 or choice == "required"))
]


@pytest.mark.parametrize(
    ("vocabulary", "form", "choice", "begins", "has_answer", "stops"), sample(CASES, "tool grammars", 150)
)
def test_what_the_grammar_allows_is_read_back(
    models: dict[str, ServedModel],
    vocabulary: str,
    form: ToolCallFormat,
    choice: str,
    begins: str,
    has_answer: bool,
    stops: list[str],
) -> None:
    model = models[vocabulary]
    tools = [
        {"type": "function", "function": {"name": "get_weather", "parameters": WEATHER, "strict": True}},
        {"type": "function", "function": {"name": "now"}},
    ]
    fields: dict[str, Any] = {"tools": tools, "tool_choice": choice}
    if has_answer:
        fields["response_format"] = {"type": "json_schema", "json_schema": {"name": "a", "schema": ANSWER}}
    made = structure(model, form, **fields)
    mark = form.trigger or form.opening

    def letters(text: str) -> list[int]:
        return [one for letter in text for one in model.tokenizer(letter, add_special_tokens=False)["input_ids"]]

    marked = [made.trigger_token] if made.trigger_token is not None else letters(mark)
    planned = {
        "text": letters("A b."),
        "call": marked,
        "text, then call": [*letters("A b."), *marked],
        "the trigger in letters": letters(f"A {mark} b"),
    }[begins]
    chance = random.Random(0)
    ids = walk(model, matcher_of(model, made), chance, list(planned))
    whole, streamed = format_both_ways(model, made, ids, stops)
    assert streamed == whole
    text = model.decode_with_special([token for token in ids if token != EOS])
    has_ended = ids[-1] == EOS
    if made.trigger_token is not None and made.trigger_token in ids:
        before = model.decode_with_special(ids[: ids.index(made.trigger_token)])
        assert whole["content"].startswith(before) or any(stop in before for stop in stops)
    elif made.trigger_token is not None and not any(stop in text for stop in stops):
        assert (whole["content"], whole["calls"]) == (text, [])
    for call in whole["calls"][:-1]:
        assert is_object(call["arguments"])
    if whole["finish"] == "tool_calls":
        assert all(is_object(call["arguments"]) for call in whole["calls"])
        assert whole["calls"]
    if has_ended and not any(stop in text for stop in stops):
        assert whole["finish"] == ("tool_calls" if whole["calls"] else "stop")
        is_json = has_answer and not whole["calls"]
        assert not is_json or json.loads(whole["content"]) == ANSWER["const"]
        assert choice == "auto" or whole["calls"]


def test_letters_of_the_trigger_begin_a_call_where_it_has_no_token(models: dict[str, ServedModel]) -> None:
    """The grammar allows no text that the parser would read as a call."""
    tools = [{"type": "function", "function": {"name": "now"}}]
    for form in (HERMES, MISTRAL):
        matcher = matcher_of(models["letters"], structure(models["letters"], form, tools=tools))
        ids = models["letters"].tokenizer(f"A {form.trigger} b", add_special_tokens=False)["input_ids"]
        assert matcher.try_consume_tokens(ids) < len(ids)


ROOTS = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["object", ["object", "null"], ["string", "object", "array"], None]),
        "anyOf": st.lists(
            st.sampled_from([{"type": "string"}, {"type": "null"}, {"enum": [{"a": 1}, "x", [1]]}, WEATHER]), min_size=1
        ),
        "enum": st.lists(st.sampled_from([{"city": "a"}, {}, "x", None, 5, [{}]]), min_size=1, unique_by=repr),
        "$ref": st.sampled_from(["#/$defs/Maybe", "#/$defs/Weather"]),
        "properties": st.just({"city": CITY}),
        "allOf": st.just([{"type": ["object", "integer"]}]),
    },
)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(root=ROOTS, is_strict=st.booleans(), seed=st.integers(0, 1000))
def test_arguments_are_an_object_for_any_root_of_the_schema(
    models: dict[str, ServedModel], root: dict[str, Any], is_strict: bool, seed: int
) -> None:
    model = models["tokens"]
    parameters = {**root, "$defs": {"Maybe": {"type": ["object", "string", "null"]}, "Weather": WEATHER}}
    tool = {"type": "function", "function": {"name": "now", "parameters": parameters, "strict": is_strict}}
    fields = {"tools": [tool], "tool_choice": "required", "parallel_tool_calls": False}
    made = structure(model, HERMES, **fields)
    matcher = matcher_of(model, made)
    if matcher.is_error():
        return  # answered 400: no object fits the schema
    ids = walk(model, matcher, random.Random(seed), [])
    whole, _ = format_both_ways(model, made, ids, [])
    assert ids[-1] != EOS or is_object(whole["calls"][0]["arguments"]), whole


@pytest.mark.parametrize("kind", ["string", "array", ["null"], ["string", "null"], 5, {}])
def test_parameters_of_another_type_are_refused_with_the_function(kind: Any) -> None:
    with pytest.raises(ValidationError, match="function 'now' must be a schema of type 'object'"):
        Function.model_validate({"name": "now", "parameters": {"type": kind}})
