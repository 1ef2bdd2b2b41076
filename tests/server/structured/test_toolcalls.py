"""How tool calls are found in texts, and which format a chat template has. No server."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hone_api.layout import EMBEDDED_TOOL_PARSERS
from hone_api.reasons import HoneError
from hone_server.artifacts.sources import ModelEntry
from hone_server.engine.sampler import SamplingParams
from hone_server.generation.served_model import ChatOptions, make_served_model
from hone_server.main import _read_chat_template
from hone_server.protocol.functions import Tool
from hone_server.protocol.requests import ChatRequest
from hone_server.structured.grammars import build_structure
from hone_server.structured.tool_calls import CallsBegin, ToolCallParser
from hone_server.structured.tool_formats import (
    GENERIC,
    HERMES,
    LLAMA3,
    MISTRAL,
    TOOL_CALL_FORMATS,
    ToolCallFormat,
    detect_tool_call_format,
)
from hypothesis import given
from hypothesis import strategies as st

SPACED_MISTRAL = replace(MISTRAL, before="[TOOL_CALLS] [")
FORMS = [HERMES, LLAMA3, MISTRAL, SPACED_MISTRAL, GENERIC]
NAMES = {"get_weather", "now", "no"}
OBJECTS = st.dictionaries(
    st.text(),
    st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=3)),
    max_size=3,
)


def written(form: ToolCallFormat, calls: list[tuple[str, str]]) -> str:
    """Return the text that a model writes."""
    each = [f"{form.opening}{name}{form.middle}{arguments}{form.closing}" for name, arguments in calls]
    return form.before + form.separator.join(each) + form.after


def begin_of(form: ToolCallFormat) -> CallsBegin:
    """Return where calls begin in the answers of a tokenizer without a token for the trigger."""
    return CallsBegin.MARK if form.trigger else CallsBegin.FIRST


def read(
    form: ToolCallFormat, pieces: list[str], begin: CallsBegin | None = None, calls_at: int | None = None
) -> tuple[str, list[tuple[str, str]]]:
    """Return the content and the calls that a parser makes of the pieces."""
    content, calls, _ = read_all(ToolCallParser(form, NAMES, begin or begin_of(form)), pieces, calls_at)
    return content, calls


def read_all(
    parser: ToolCallParser, pieces: list[str], calls_at: int | None = None
) -> tuple[str, list[tuple[str, str]], bool]:
    """Return the content, the calls, and whether they are complete. The trigger's place is known once it has come."""
    content, calls, pushed = "", list[list[str]](), 0
    for piece in pieces:
        pushed += len(piece)
        more, parts = parser.push(piece, None if calls_at is None or pushed <= calls_at else calls_at)
        content += more
        for part in parts:
            if part.name is not None:
                assert (part.index, part.arguments) == (len(calls), "")
                calls.append([part.name, ""])
            calls[part.index][1] += part.arguments
    assert parser.call_count == len(calls)
    content += parser.flush()
    return content, [(name, arguments) for name, arguments in calls], parser.is_complete


@given(
    form=st.sampled_from(FORMS),
    calls=st.lists(st.tuples(st.sampled_from(sorted(NAMES)), OBJECTS.map(json.dumps)), min_size=1, max_size=3),
    content=st.sampled_from(["", "Let me look. ", '<b>{"name": "now"} [TOOL ']),
    size=st.integers(1, 9),
)
def test_calls_are_found_in_text_cut_into_any_pieces(
    form: ToolCallFormat, calls: list[tuple[str, str]], content: str, size: int
) -> None:
    text = (content if form.trigger else "") + written(form, calls)
    pieces = [text[place : place + size] for place in range(0, len(text), size)]
    assert read(form, pieces) == (content if form.trigger else "", calls)


@given(form=st.sampled_from(FORMS), text=st.text(alphabet='{"name: now<tol_c>[TOOL_CALLS]x\n'), size=st.integers(1, 5))
def test_text_without_calls_stays_as_it_is(form: ToolCallFormat, text: str, size: int) -> None:
    if form.trigger is not None and form.trigger in text:
        return
    assert read(form, [text[place : place + size] for place in range(0, len(text), size)]) == (text, [])


@given(
    form=st.sampled_from(FORMS),
    begin=st.sampled_from(CallsBegin),
    content=st.sampled_from(["", "Look. ", "The tag is <tool_call>, or [TOOL_CALLS] [ in Mistral's form. "]),
    calls=st.lists(st.tuples(st.sampled_from(sorted(NAMES)), OBJECTS.map(json.dumps)), min_size=1, max_size=3),
    size=st.integers(1, 9),
    data=st.data(),
)
def test_a_cut_answer_loses_nothing_and_is_complete_between_calls(
    form: ToolCallFormat,
    begin: CallsBegin,
    content: str,
    calls: list[tuple[str, str]],
    size: int,
    data: st.DataObject,
) -> None:
    """Each character of the cut text is expected in one place, by the pieces from which the text is made."""
    if begin in (CallsBegin.MARK, CallsBegin.TOKEN) and form.trigger is None:
        return
    if begin is not CallsBegin.TOKEN:
        content = "Look. " if begin is CallsBegin.MARK else ""
    pieces, ends = [("content", content)], set[int]()
    for number, (name, arguments) in enumerate(calls):
        head = f"{form.opening}{name}{form.middle}"
        pieces += [("head", head if number else form.before + head), ("arguments", arguments)]
        before = len("".join(piece for _, piece in pieces))
        pieces.append(("end", form.closing + (form.separator if number < len(calls) - 1 else form.after)))
        ends |= set(range(before, before + len(pieces[-1][1]) + 1))
    text = "".join(piece for _, piece in pieces)
    cut = data.draw(st.integers(0, len(text)))
    expected_content, expected_calls, rest = "", list[tuple[str, str]](), text[:cut]
    names = iter(calls)
    for kind, piece in pieces:
        got, rest = rest[: len(piece)], rest[len(piece) :]
        if kind == "content" or (kind == "head" and got != piece):
            expected_content += got
        elif kind == "head":
            expected_calls.append((next(names)[0], ""))
        elif kind == "arguments" and got:
            expected_calls[-1] = (expected_calls[-1][0], got)
    parser = ToolCallParser(form, NAMES, begin)
    chunks = [text[:cut][place : place + size] for place in range(0, cut, size)]
    found, found_calls, is_complete = read_all(parser, chunks, len(content))
    assert (found, found_calls) == (expected_content, expected_calls)
    assert is_complete == (cut in ends)


@given(
    form=st.sampled_from([HERMES, MISTRAL, SPACED_MISTRAL]), size=st.integers(1, 9), text=st.sampled_from(["[1]", "{}"])
)
def test_the_text_of_a_call_is_content_where_no_call_may_begin(form: ToolCallFormat, size: int, text: str) -> None:
    """A model that explains the format writes it in ordinary tokens, or in the JSON of an answer."""
    text += written(form, [("now", "{}")])
    pieces = [text[place : place + size] for place in range(0, len(text), size)]
    assert read(form, pieces, CallsBegin.TOKEN) == (text, [])
    assert read(form, pieces, CallsBegin.FIRST) == (text, [])
    calls = written(form, [("no", '{"a": "}"}')])
    pieces += [calls[place : place + size] for place in range(0, len(calls), size)]
    assert read(form, pieces, CallsBegin.TOKEN, calls_at=len(text)) == (text, [("no", '{"a": "}"}')])


@pytest.mark.parametrize("mark", ["", "<|python_tag|>"])
def test_a_token_before_the_first_call_is_not_shown(mark: str) -> None:
    text = mark + written(LLAMA3, [("now", "{}")])
    for begin in (CallsBegin.FIRST, CallsBegin.ALWAYS):
        assert read(LLAMA3, list(text), begin) == ("", [("now", "{}")])


@pytest.mark.parametrize(
    ("template", "form"),
    [
        ('For each call return <tool_call>\\n{\\"name\\": <name>, \\"arguments\\": <args>}\\n</tool_call>', HERMES),
        ('{{ \'<tool_call>\\n{"name": "\' + call.name + \'", "arguments": \' }}', HERMES),
        ('{{ tools }} Environment: ipython {"name": function name, "parameters": dictionary of argument name}', LLAMA3),
        ("{{ '[TOOL_CALLS][' }}{{ call | tojson }}", MISTRAL),
        ("{{ '[TOOL_CALLS] [' }}{{ call | tojson }}", SPACED_MISTRAL),
        ("{{ '[TOOL_CALLS]' + name + '[ARGS]' + arguments }}", None),
        ("<tool_call>\n<function=name>\n<parameter=a>", None),
        ("<tool_call>{name}\n<arg_key>{key}</arg_key>", None),
        ("{% for m in messages %}{{ m['content'] }}{% endfor %}", None),
        (None, None),
    ],
)
def test_the_form_is_that_of_the_template(template: str | None, form: ToolCallFormat | None) -> None:
    assert detect_tool_call_format(template) == form


def test_ids_are_as_the_templates_take_them() -> None:
    [_, [part, *_]] = ToolCallParser(MISTRAL, NAMES, CallsBegin.ALWAYS).push(written(MISTRAL, [("now", "{}")]))
    assert part.id is not None
    assert part.id.isalnum()
    assert len(part.id) == 9


def test_the_forms_are_those_of_the_api() -> None:
    assert set(TOOL_CALL_FORMATS) == set(EMBEDDED_TOOL_PARSERS)


def test_a_template_is_read_from_a_file_or_given_itself(tmp_path: Path) -> None:
    file = tmp_path / "own.jinja"
    file.write_text("{{ messages }}")
    assert _read_chat_template(str(file)) == _read_chat_template("{{ messages }}") == "{{ messages }}"
    assert _read_chat_template(None) is None
    with pytest.raises(HoneError, match="can't be read, and is no Jinja template"):
        _read_chat_template(str(tmp_path / "missing.jinja"))


def test_settings_for_all_models_replace_their_own(tokenizer_maker: Any) -> None:
    tokenizer = tokenizer_maker()
    lane: Any = SimpleNamespace(eos_token_ids=frozenset({2}), vocab_size=len(tokenizer))
    served, defaults = ModelEntry("m", "base", "m"), SamplingParams(1.0, 1.0, 0, 0)
    assert make_served_model(served, tokenizer, lane, defaults).tool_call_format is None
    model = make_served_model(served, tokenizer, lane, defaults, ChatOptions("{{ '[TOOL_CALLS][' }}"))
    assert model.tool_call_format == MISTRAL
    assert model.tokenizer.apply_chat_template([{"role": "user", "content": ""}], tokenize=False) == "[TOOL_CALLS]["
    assert make_served_model(served, tokenizer, lane, defaults, ChatOptions(None, HERMES)).tool_call_format == HERMES


def test_the_template_gets_tools_as_they_came_without_strict() -> None:
    sent = {"type": "function", "function": {"name": "now", "parameters": {"type": "object"}, "strict": True, "x": 1}}
    request = ChatRequest.model_validate(
        {"model": "m", "messages": [{"role": "user", "content": "q"}], "tools": [sent]}
    )
    structure = build_structure(request, HERMES, lambda _: None, [])
    kept = {"name": "now", "parameters": {"type": "object"}, "x": 1}
    assert structure.tools == [{"type": "function", "function": kept}]
    assert Tool.model_validate(sent).function.arguments_schema == {"type": "object"}
