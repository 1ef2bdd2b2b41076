"""How tool calls are found in texts, and which form of them a chat template has. No server."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hone_api.layout import EMBEDDED_TOOL_PARSERS
from hone_api.reasons import HoneError
from hone_server.functions import Tool
from hone_server.main import _read_template
from hone_server.models import ChatOptions, make_model
from hone_server.protocol import ChatRequest
from hone_server.sampling import Sampling
from hone_server.sources import Served
from hone_server.structure import structure_of
from hone_server.toolcalls import ToolCallParser
from hone_server.toolformats import FORMATS, GENERIC, HERMES, LLAMA3, MISTRAL, ToolFormat, find_format
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


def written(form: ToolFormat, calls: list[tuple[str, str]]) -> str:
    """What a model writes."""
    each = [f"{form.opening}{name}{form.middle}{arguments}{form.closing}" for name, arguments in calls]
    return form.before + form.separator.join(each) + form.after


def read(form: ToolFormat, pieces: list[str]) -> tuple[str, list[tuple[str, str]]]:
    """What a parser makes of the pieces: the content and the calls."""
    parser = ToolCallParser(form, NAMES)
    content, calls = "", list[list[str]]()
    for piece in pieces:
        more, parts = parser.push(piece)
        content += more
        for part in parts:
            if part.name is not None:
                assert (part.index, part.arguments) == (len(calls), "")
                calls.append([part.name, ""])
            calls[part.index][1] += part.arguments
    assert parser.calls == len(calls)
    return content + parser.flush(), [(name, arguments) for name, arguments in calls]


@given(
    form=st.sampled_from(FORMS),
    calls=st.lists(st.tuples(st.sampled_from(sorted(NAMES)), OBJECTS.map(json.dumps)), min_size=1, max_size=3),
    content=st.sampled_from(["", "Let me look. ", '<b>{"name": "now"} [TOOL ']),
    size=st.integers(1, 9),
)
def test_calls_are_found_however_the_text_is_cut(
    form: ToolFormat, calls: list[tuple[str, str]], content: str, size: int
) -> None:
    text = (content if form.trigger else "") + written(form, calls)
    pieces = [text[place : place + size] for place in range(0, len(text), size)]
    assert read(form, pieces) == (content if form.trigger else "", calls)


@given(form=st.sampled_from(FORMS), text=st.text(alphabet='{"name: now<tol_c>[TOOL_CALLS]x\n'), size=st.integers(1, 5))
def test_text_without_calls_stays_as_it_is(form: ToolFormat, text: str, size: int) -> None:
    if form.trigger is not None and form.trigger in text:
        return
    assert read(form, [text[place : place + size] for place in range(0, len(text), size)]) == (text, [])


@pytest.mark.parametrize("form", FORMS)
def test_a_cut_call_keeps_the_arguments_so_far(form: ToolFormat) -> None:
    whole = written(form, [("now", '{"zone": "UTC"}')])
    cut = whole[: whole.index("UTC")]
    assert read(form, [cut]) == ("", [("now", '{"zone": "')])
    assert read(form, [whole[: whole.index(form.middle)]])[1] == []


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
def test_the_form_is_that_of_the_template(template: str | None, form: ToolFormat | None) -> None:
    assert find_format(template) == form


def test_ids_are_as_the_templates_take_them() -> None:
    [_, [part, *_]] = ToolCallParser(MISTRAL, NAMES).push(written(MISTRAL, [("now", "{}")]))
    assert part.id is not None
    assert part.id.isalnum()
    assert len(part.id) == 9


def test_the_forms_are_those_of_the_api() -> None:
    assert set(FORMATS) == set(EMBEDDED_TOOL_PARSERS)


def test_a_template_is_read_from_a_file_or_given_itself(tmp_path: Path) -> None:
    file = tmp_path / "own.jinja"
    file.write_text("{{ messages }}")
    assert _read_template(str(file)) == _read_template("{{ messages }}") == "{{ messages }}"
    assert _read_template(None) is None
    with pytest.raises(HoneError, match="can't be read, and is no Jinja template"):
        _read_template(str(tmp_path / "missing.jinja"))


def test_what_is_given_for_all_models_comes_before_their_own(tokenizer_maker: Any) -> None:
    tokenizer = tokenizer_maker()
    lane: Any = SimpleNamespace(eos_token_ids=frozenset({2}), vocab_size=len(tokenizer))
    served, defaults = Served("m", "base", "m"), Sampling(1.0, 1.0, 0, 0)
    assert make_model(served, tokenizer, lane, defaults).tool_form is None
    model = make_model(served, tokenizer, lane, defaults, ChatOptions("{{ '[TOOL_CALLS][' }}"))
    assert model.tool_form == MISTRAL
    assert model.tokenizer.apply_chat_template([{"role": "user", "content": ""}], tokenize=False) == "[TOOL_CALLS]["
    assert make_model(served, tokenizer, lane, defaults, ChatOptions(None, HERMES)).tool_form == HERMES


def test_the_template_gets_tools_as_they_came_without_strict() -> None:
    sent = {"type": "function", "function": {"name": "now", "parameters": {"type": "object"}, "strict": True, "x": 1}}
    request = ChatRequest.model_validate(
        {"model": "m", "messages": [{"role": "user", "content": "q"}], "tools": [sent]}
    )
    structure = structure_of(request, HERMES, lambda _: None, [])
    kept = {"name": "now", "parameters": {"type": "object"}, "x": 1}
    assert structure.tools == [{"type": "function", "function": kept}]
    assert Tool.model_validate(sent).function.arguments_schema == {"type": "object"}
