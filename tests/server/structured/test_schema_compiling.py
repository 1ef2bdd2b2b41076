"""From a client's schema to answers: a random walk through the grammar, without a model and without a server."""

import asyncio
import itertools
import json
import math
import random
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from urllib.parse import unquote

import jsonschema_rs
import numpy as np
import pytest
from hone_server.protocol.errors import ApiError
from hone_server.protocol.requests import ChatRequest
from hone_server.structured.grammar_trial import find_refused_keyword, remove_refused_keywords
from hone_server.structured.grammars import build_structure
from hone_server.structured.guidance import MASK_BITS, GrammarCompiler, Guide
from hone_server.structured.schema_places import SCHEMA_KEYWORDS
from hone_server.structured.schemas import EQUAL_PATTERNS, NEUTRAL_FORMATS, prepare_schema
from hone_server.structured.tool_formats import HERMES
from hypothesis import given, settings
from hypothesis import strategies as st
from tool_call_tokens import SPECIAL_TOKENS, TOKENS, add_tokens
from transformers import PreTrainedTokenizerFast

END = 2
MOST_TOKENS = 3000
NAMES_OF_TOKENS = [*TOKENS, *SPECIAL_TOKENS, "</s>", "<s>", "<|user|>"]
CRASHING = {"const": -(2**63)}
SLOW = {"type": "integer", "multipleOf": 999_983}
WHITESPACE = {"x-guidance": {"whitespace_pattern": " {1,4}"}}


class Walker:
    """Requests guides as the engine does, and follows them at random."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self.guidance = GrammarCompiler(tokenizer, frozenset({END}), len(tokenizer))
        self.loop = asyncio.new_event_loop()
        self._tokens = {token.content: number for number, token in tokenizer.added_tokens_decoder.items()}

    def guide(self, **parameters: Any) -> Guide:
        body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], **parameters}
        structure = build_structure(ChatRequest.model_validate(body), HERMES, self._tokens.get, [])
        return self.compile(list(structure.grammar or ()), structure.schema_owners, structure.param)

    def compile(self, grammars: list[dict[str, Any]], owners: tuple[str | None, ...], param: str = "tools") -> Guide:
        [guide] = self.loop.run_until_complete(self.guidance.make_guides(grammars, owners, [0], param, "client"))
        return guide

    def answer(self, schema: dict[str, Any], seed: int = 0) -> Any:
        """Return a value that `response_format` with this schema allows."""
        form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
        return json.loads(self.walk(self.guide(response_format=form), seed))

    def arguments(self, parameters: dict[str, Any], seed: int = 0, **more: Any) -> Any:
        """Return the arguments of a call of the second of two functions."""
        tools = [{"name": "now"}, {"name": "second", "parameters": parameters, **more}]
        chosen = {"type": "function", "function": {"name": "second"}}
        listed = [{"type": "function", "function": tool} for tool in tools]
        text = self.walk(self.guide(tools=listed, tool_choice=chosen), seed)
        return json.loads(text.partition("\n")[2].rpartition("\n")[0])["arguments"]

    def walk(self, guide: Guide, seed: int) -> str:
        chance, found = random.Random(seed), list[int]()
        mask = np.zeros(-(-len(self.tokenizer) // MASK_BITS), np.uint32)
        short = {token for token in range(len(self.tokenizer)) if self.tokenizer.decode([token]) in set('{}[]",:-0123')}
        while len(found) < MOST_TOKENS:
            guide.fill_bitmask(mask, [], found)
            assert guide.error is None
            allowed = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist()
            if END in allowed:
                return str(self.tokenizer.decode(found))
            brief = [token for token in allowed if token in short]
            found.append(chance.choice(brief if brief and chance.random() < 0.7 else allowed))
        raise AssertionError(self.tokenizer.decode(found))


@pytest.fixture(scope="module")
def walker(tokenizer_maker: Callable[[], PreTrainedTokenizerFast]) -> Walker:
    return Walker(add_tokens(tokenizer_maker()))


def closed(**properties: Any) -> dict[str, Any]:
    names = list(properties)
    return {"type": "object", "properties": properties, "required": names, "additionalProperties": False}


@pytest.mark.parametrize("schema", [CRASHING, closed(a={"enum": ["b", -(2**63)]}), {"const": [{"a": -(2**63)}]}])
def test_a_schema_that_ends_the_compilers_process_is_refused_and_named(walker: Walker, schema: dict[str, Any]) -> None:
    parts = [
        {"name": "start", "lark_grammar": 'start: @one | "x" @two'},
        {"name": "one", "json_schema": {"type": "boolean", **WHITESPACE}},
        {"name": "two", "json_schema": {**schema, **WHITESPACE}},
    ]
    with pytest.raises(ApiError, match=r"the function 'two'.*compiler fails") as refused:
        walker.compile(parts, (None, "the function 'one'", "the function 'two'"))
    assert refused.value.status == 400
    assert walker.answer({"const": True}) is True


def test_slow_schemas_do_not_delay_others(walker: Walker) -> None:
    async def ask() -> None:
        make = walker.guidance.make_guides
        slow = [
            asyncio.ensure_future(
                make([{"json_schema": {**SLOW, "multipleOf": prime, **WHITESPACE}}], [None], [0], "tools", "client")
            )
            for prime in (999_983, 999_979)
        ]
        await asyncio.sleep(0)
        await make([{"json_schema": {"type": "boolean", "title": "new", **WHITESPACE}}], [None], [0], "tools", "client")
        assert not any(one.done() for one in slow)
        for one in slow:
            with pytest.raises(ApiError, match="simplify") as refused:
                await one
            assert refused.value.status in (400, 503)  # 503 if the machine is busy

    walker.answer({"const": True})  # the helper runs
    walker.loop.run_until_complete(ask())


def test_a_helper_that_was_ended_is_started_again(walker: Walker) -> None:
    walker.answer({"const": "before"})
    vocabulary = walker.guidance._get_cached_vocabulary()
    assert vocabulary is not None
    vocabulary.trials.close()
    assert walker.answer({"const": "after"}) == "after"


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    text=st.lists(st.sampled_from([*NAMES_OF_TOKENS, "a", " b", "é", '"', "\n"]), min_size=1, max_size=4).map("".join),
    place=st.sampled_from(["const", "enum", "name", "inside"]),
)
def test_text_of_an_added_token_in_a_schema_is_text_in_the_answer(walker: Walker, text: str, place: str) -> None:
    schema = {
        "const": {"const": text},
        "enum": {"enum": [text, "zzz"]},
        "name": closed(**{text: {"const": True}}),
        "inside": closed(a={"const": [text, {text: text}]}),
    }[place]
    for seed in range(3):
        jsonschema_rs.validate(schema, walker.answer(schema, seed))
        jsonschema_rs.validate(closed(a=schema), walker.arguments(closed(a=schema), seed))


NUMBERS = st.one_of(
    st.integers(-(2**64), 2**64),
    st.sampled_from([sign * (2**power + more) for sign in (1, -1) for power in (53, 63, 64) for more in (-1, 0, 1)]),
    st.floats(),
    st.decimals(-1000, 1000, places=3).map(float),
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(number=NUMBERS, form=st.sampled_from(["const", "enum", "list", "integer"]))
def test_a_number_is_answered_exactly_or_refused(walker: Walker, number: float, form: str) -> None:
    schema = {
        "const": {"const": number},
        "enum": {"enum": [number, number]},
        "list": {"const": [number]},
        "integer": {"type": "integer", "minimum": number, "maximum": number},
    }[form]
    with suppress(ApiError):
        answer = walker.answer(schema)
        found = answer[0] if form == "list" else answer
        assert number == (found if isinstance(number, int) else float(found))
        return
    # Common numbers are not refused.
    assert form == "integer" or abs(number) > 2**53 or len(repr(number)) > 15 or math.isnan(number)


REFUSED = {
    "look-around": ({"type": "string", "pattern": "^(?!x)[a-z]{3}$"}, "pattern"),
    "boundary": ({"type": "string", "pattern": r"\bword\b"}, "pattern"),
    "remote": ({"$ref": "https://example.com/x.json"}, "$ref"),
    "dangling": ({"$ref": "#/$defs/None"}, "$ref"),
    "null required": ({"type": "object", "required": None}, "required"),
    "properties as a list": ({"type": "object", "properties": []}, "properties"),
    "null properties": ({"type": "object", "properties": None}, "properties"),
    "null enum": ({"type": "string", "enum": None, "maxLength": 3}, "enum"),
    "null additional": ({"type": "object", "additionalProperties": None}, "additionalProperties"),
    "required inside": ({"type": "object", "properties": {"a": True, "required": ["a"]}}, "required"),
    "unknown type": ({"type": "any"}, "type"),
    "empty enum": ({"enum": []}, "enum"),
    "huge multiple": (SLOW, "multipleOf"),
    "large number": ({"enum": [2**60 + 1]}, "enum"),
    "infinite": ({"type": "number", "maximum": float("inf")}, "maximum"),
    "not required": (closed(a={"const": 1}) | {"required": ["a", "b"]}, "required"),
    "unique": ({"type": "array", "uniqueItems": True}, "uniqueItems"),
    "contradiction": ({"type": "string", "minLength": 3, "maxLength": 2}, "Length"),
}


@pytest.mark.parametrize(("schema", "keyword"), REFUSED.values(), ids=REFUSED)
def test_unenforceable_keywords_are_left_out_or_refused_if_strict(
    walker: Walker, schema: dict[str, Any], keyword: str
) -> None:
    parameters = closed(kept={"enum": ["a", "b"]}, odd=schema)
    with suppress(AssertionError):  # an answer that does not end
        found = walker.arguments(parameters)
        assert list(found) == ["kept", "odd"]
        assert found["kept"] in ("a", "b")
    with pytest.raises(ApiError, match="the function 'second'") as refused:
        walker.arguments(parameters, strict=True)
    assert refused.value.status == 400
    assert keyword in refused.value.message
    with pytest.raises(ApiError, match="response_format"):
        walker.answer(parameters)


@pytest.mark.parametrize("name", sorted(SCHEMA_KEYWORDS | {"plain", "0", "x-guidance", "title", "default"}))
def test_a_property_may_have_the_name_of_any_keyword(walker: Walker, name: str) -> None:
    odd = {"type": "string", "pattern": "(?=a)b"}
    parameters = closed(**{name: odd, "kept": {"enum": ["a", "b"]}})
    with suppress(AssertionError):  # an answer that has no end
        found = walker.arguments(parameters)
        assert set(found) == {name, "kept"}
        assert found["kept"] in ("a", "b")
    with pytest.raises(ApiError, match=re.escape(f"at properties/{name}/pattern: ")):
        walker.answer(parameters)


PLACES = [
    "/$defs/a",
    "/definitions/a",
    "/a",
    "/components/schemas/a",
    "/x~1y/a~0",
    "/a%20b",
    "/list/1",
    "/properties/a",
]


def put_at(pointer: str, schema: Any) -> dict[str, Any]:
    """Return a document that has the schema at the place of this JSON pointer."""
    for part in reversed(unquote(pointer)[1:].split("/")):
        name = part.replace("~1", "/").replace("~0", "~")
        schema = [True, schema] if name.isdecimal() else {name: schema}
    found: dict[str, Any] = schema
    return found


@pytest.mark.parametrize("pointer", PLACES)
@pytest.mark.parametrize("document", ["", "http://example.org/a"])
def test_a_schema_is_enforced_exactly_wherever_a_reference_finds_it(
    walker: Walker, pointer: str, document: str
) -> None:
    def document_with(schema: Any) -> dict[str, Any]:
        start = {"$id": document} if document else {}
        return {**start, "type": "object", "required": ["z"], **merge(schema)}

    def merge(schema: Any) -> dict[str, Any]:
        own, reference = put_at(pointer, schema), {"z": {"$ref": f"{document}#{pointer}"}}
        return {**own, "properties": {**own.get("properties", {}), **reference}, "additionalProperties": False}

    inexact = document_with({"anyOf": [{"const": 2**53 + 1}]})
    with pytest.raises(ApiError, match=r"anyOf/0/const: the number 9007199254740993"):
        walker.answer(inexact)
    bounded = document_with({"type": "integer", "minimum": 5, "exclusiveMinimum": True, "maximum": 6})
    assert walker.answer(bounded)["z"] == 6
    neutral = document_with({"const": 1, "uniqueItems": False, "title": "a", "default": 10**400})
    assert walker.answer(neutral)["z"] == 1


def test_references_that_lead_from_one_place_to_the_next_are_followed(walker: Walker) -> None:
    chain = {"one": {"items": {"$ref": "#/two/x"}}, "two": {"x": {"$ref": "#/one"}, "y": {"$ref": "#/three"}}}
    schema = {**closed(a={"$ref": "#/one"}, b={"$ref": "#/two/y"}), **chain, "three": {"const": 2**53 + 1}}
    with pytest.raises(ApiError, match="at three/const: the number 9007199254740993"):
        walker.answer(schema)


@pytest.mark.parametrize("pointer", ["/properties", "/required", "/anyOf", "/properties/a/enum/0"])
def test_a_reference_to_what_is_no_schema_is_refused(walker: Walker, pointer: str) -> None:
    schema = {**closed(a={"enum": [{"const": 1}]}, b={"$ref": f"#{pointer}"}), "anyOf": [{}]}
    with pytest.raises(ApiError, match=f"properties/b/\\$ref: points to {pointer[1:]}"):
        walker.answer(schema)
    assert walker.arguments({**closed(a={"const": 1}), "$defs": {"b": {"$ref": "#/properties"}}}) == {"a": 1}


NEUTRAL = [
    {"propertyNames": {"type": "string"}},
    {"propertyNames": {}},
    {"propertyNames": True},
    {"propertyNames": {"type": ["string", "null"], "description": "a name"}},
    {"uniqueItems": False},
    {"unevaluatedProperties": True},
    {"unevaluatedProperties": {"title": "any"}},
    {"unevaluatedItems": True},
    {"dependentRequired": {}},
    {"dependentRequired": {"a": []}},
    {"dependentSchemas": {}},
    {"dependentSchemas": {"a": True}},
    {"dependencies": {"a": []}},
    {"contains": {"type": "null"}, "minContains": 0},
    {"minContains": 1, "maxContains": 2},
    {"not": False},
    {"if": {"required": ["a"]}},
    {"then": {"required": ["a"]}},
    {"if": {"required": ["a"]}, "then": True, "else": {}},
    {"exclusiveMinimum": False},
    {"required": False},
    {"additionalItems": False},
    {"default": float("inf")},
]


@pytest.mark.parametrize("keywords", NEUTRAL, ids=json.dumps)
def test_keywords_without_effect_are_accepted_everywhere(walker: Walker, keywords: dict[str, Any]) -> None:
    plain = closed(a={"type": "array", "prefixItems": [{"const": 1}], "minItems": 1, "maxItems": 1})
    assert walker.answer({**keywords, **closed(x={**keywords, **plain})}) == {"x": {"a": [1]}}
    items = plain["properties"]["a"]
    assert prepare_schema({"anyOf": [{**items, **keywords}]}, is_strict=True) == {"anyOf": [items]}


def test_counts_may_be_written_as_decimals(walker: Walker) -> None:
    assert walker.answer({"type": "array", "items": {"const": 1}, "minItems": 2.0, "maxItems": 2.0}) == [1, 1]


@pytest.mark.parametrize("key", ["exclusiveMinimum", "exclusiveMaximum"])
def test_exclusive_bounds_of_draft_4_are_enforced(walker: Walker, key: str) -> None:
    schema = {"type": "integer", "minimum": 1, "maximum": 2, key: True}
    assert {walker.answer(schema, seed) for seed in range(5)} == ({2} if key == "exclusiveMinimum" else {1})
    with pytest.raises(ApiError, match=key):
        walker.answer({"type": "integer", key: True})


def test_required_of_draft_3_is_enforced(walker: Walker) -> None:
    properties = {"a": {"const": 1, "required": True}, "b": {"const": 2, "required": False}, "c": {"const": 3}}
    schema = {"type": "object", "properties": properties, "required": ["c"], "additionalProperties": False}
    answers = [walker.answer(schema, seed) for seed in range(10)]
    assert all({"a", "c"} <= set(answer) for answer in answers)
    assert {"a": 1, "c": 3} in answers
    with pytest.raises(ApiError, match="required"):
        walker.answer({"type": "array", "items": {"required": True}})


@settings(max_examples=200, deadline=None)
@given(
    bad=st.sets(st.sampled_from(["pattern", "minLength", "format"])),
    depth=st.integers(0, 4),
    wide=st.integers(1, 4),
)
def test_a_repair_removes_only_the_keywords_that_are_refused(bad: set[str], depth: int, wide: int) -> None:
    def nested(level: int) -> dict[str, Any]:
        leaf = {"type": "string", "pattern": "x", "minLength": 1, "format": "date"}
        return leaf if level == 0 else closed(**{f"p{number}": nested(level - 1) for number in range(min(wide, 2))})

    def passes(schema: Any) -> bool:
        return not any(f'"{key}"' in json.dumps(schema) for key in bad)

    def stripped(schema: Any) -> Any:
        if not isinstance(schema, dict):
            return schema
        return {key: stripped(value) for key, value in schema.items() if key not in bad}

    schema = {**nested(depth), **WHITESPACE}
    assert remove_refused_keywords(schema, passes) == stripped(schema)
    place = find_refused_keyword(schema, passes)
    assert (place is not None and place[-1] in bad) or not bad


@pytest.mark.parametrize("name", sorted(NEUTRAL_FORMATS))
def test_a_format_that_any_text_has_is_left_out(walker: Walker, name: str) -> None:
    schema = {"type": "object", "properties": {"format": {"type": "string", "format": name}}, "required": ["format"]}
    assert prepare_schema(schema, is_strict=True)["properties"] == {"format": {"type": "string"}}
    assert isinstance(walker.answer(schema)["format"], str)


@pytest.mark.parametrize(("written", "compiled"), EQUAL_PATTERNS.items())
def test_a_pattern_that_the_compiler_cannot_read_is_replaced_by_an_equal_one(
    walker: Walker, written: str, compiled: str
) -> None:
    for length in range(7):
        for letters in itertools.product("+-.07x", repeat=length):
            text = "".join(letters)
            assert bool(re.search(written, text)) == bool(re.search(compiled, text)), text
    assert re.search(written, walker.answer({"type": "string", "pattern": written}))
