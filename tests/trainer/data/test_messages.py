"""The contents of a row reach the chat template as written, or are refused with their place."""

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chat_templates import GENERATION_TEMPLATE
from datasets import load_from_disk
from hone_api.reasons import HoneError
from hone_trainer.data import formats
from hone_trainer.data.messages import RESERVED_ARGUMENTS
from transformers import AutoTokenizer, PreTrainedTokenizerBase

Prepare = Callable[..., Any]
ASKED = {"role": "user", "content": "hi"}
ANSWERED = {"role": "assistant", "content": "ho"}
CALL = {"id": "a", "type": "function", "function": {"name": "find", "arguments": {"city": "Paris", "none": None}}}
TOOL = {"type": "function", "function": {"name": "find", "parameters": {"type": "object", "properties": {}}}}
TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% if style is defined %}<{{ style }}>{% endif %}"
    "{% for m in messages %}{{ m.role }}:{% if m.reasoning_content %}({{ m.reasoning_content }}){% endif %}"
    "{% if m.content is string %}{{ m.content }}{% elif m.content %}{% for p in m.content %}{{ p.text }}{% endfor %}"
    "{% endif %}{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}{{ eos_token }}{% endfor %}"
)


def shape(row: dict[str, Any], renames: dict[str, str] | None = None, wanted: str = "auto") -> dict[str, Any]:
    found = {column: int(value is not None) for column, value in row.items()}
    return formats.shape_row("row 1", row, formats.detect_layout(wanted, renames or {}, found, row))


@pytest.fixture
def prepare(job: Callable[..., dict[str, Any]], train: Callable[..., Any], claim: Path, tmp_path: Path) -> Prepare:
    """Prepare rows with a chat template: prepare(rows, template, **training)."""

    def run(rows: list[Any], template: str = TEMPLATE, columns: dict[str, str] | None = None, **training: Any) -> Any:
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        dataset = {"claim": {"name": "data", "path": "rows.jsonl"}, "chatTemplate": template, "columns": columns or {}}
        done = job(dataset=dataset, training=training)
        return train(done, claims={"claim": claim, "data": tmp_path}, command="prepare")

    return run


def learned(done: Any) -> list[str]:
    """Return the learned text of each row, without spaces: a token may or may not begin with the one before it."""
    assert done.code == 0, done.log
    tokenizer = AutoTokenizer.from_pretrained(done.output.parent.parent / "claim/tiny")
    rows = load_from_disk(str(done.output / "prepared/train"))
    return [tokenizer.decode([token for token in row["labels"] if token >= 0]).replace(" ", "") for row in rows]


def test_messages_keep_every_key_that_is_not_null() -> None:
    turn = {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": "why", "name": None}
    result = {"role": "tool", "content": "ok", "tool_call_id": "a"}
    shaped = shape({"messages": [ASKED, turn, result], "tools": json.dumps([TOOL]), "chat_template_kwargs": {"x": 1}})
    assert shaped["messages"] == [ASKED, {key: turn[key] for key in turn if key != "name"}, result]
    assert shaped["tools"] == [TOOL]
    assert formats.get_template_arguments(shaped) == {"tools": [TOOL], "x": 1}


def test_a_system_column_and_a_history_become_messages() -> None:
    expected = [{"role": "system", "content": "be kind"}, ASKED, ANSWERED]
    spoken = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]
    assert shape({"conversations": spoken, "system": "be kind"})["messages"] == expected
    assert shape({"messages": [ASKED, ANSWERED], "sys": "be kind"}, {"system": "sys"})["messages"] == expected
    assert shape({"messages": expected, "system": "be kind"})["messages"] == expected
    pair = shape({"prompt": [ASKED], "completion": [ANSWERED], "system": "be kind"})
    assert formats.get_conversation(pair) == expected
    alpaca = {"instruction": "hi", "output": "ho", "input": None, "system": "be kind", "history": [["a", "b"]]}
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert shape(alpaca)["messages"] == [expected[0], *turns, *expected[1:]]


def test_sharegpt_calls_and_observations_are_calls_and_results_of_tools() -> None:
    spoken = [
        {"from": "human", "value": "hi"},
        {"from": "function_call", "value": '{"name": "find", "arguments": {"a": 1}}'},
        {"from": "observation", "value": "ok"},
    ]
    call = {"type": "function", "function": {"name": "find", "arguments": {"a": 1}}}
    assert shape({"conversations": spoken})["messages"] == [
        ASKED,
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "ok"},
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": [{**ASKED, "content": [{"type": "image_url", "image_url": {}}]}]}, "type 'image_url'"),
        ({"messages": [{**ASKED, "content": ["hi"]}]}, "content part 'hi'"),
        ({"messages": [{**ASKED, "content": 1}]}, "content 1"),
        ({"messages": [{"role": "assistant", "content": None}]}, "no content"),
        ({"messages": [ASKED, {"role": "assistant", "content": None, "function_call": {}}]}, "message 2 has function_"),
        ({"messages": [{**ASKED, "tool_calls": {"a": 1}}]}, "tool_calls {'a': 1}"),
        ({"messages": [{**ANSWERED, "weight": 0.5}]}, "weight 0.5"),
        ({"messages": [{**ANSWERED, "train": "no"}]}, "train: 'no'"),
        ({"messages": [{**ANSWERED, "train": True, "weight": 0}]}, "contradict"),
        ({"messages": [ASKED], "tools": "{"}, "column tools holds '{', which is not JSON"),
        ({"messages": [ASKED], "tools": {"a": 1}}, "list of tools"),
        ({"messages": [ASKED], "chat_template_kwargs": {"add_generation_prompt": True}}, "add_generation_prompt"),
        ({"messages": [ASKED], "chat_template_kwargs": "x"}, "an object"),
        ({"messages": [{"role": "system", "content": "a"}, ASKED], "system": "b"}, "another system message"),
        ({"instruction": "a", "output": "b", "history": [["a"]]}, "column history holds ['a']"),
        ({"conversations": [{"from": "function_call", "value": "find"}]}, "not JSON"),
        ({"conversations": [{"from": ["a"], "value": "find"}]}, "is from ['a']"),
        ({"prompt": [ASKED], "completion": "ho"}, "text in one of prompt and completion"),
    ],
)
def test_messages_that_can_not_be_trained_on_are_refused_with_their_place(row: dict[str, Any], message: str) -> None:
    with pytest.raises(HoneError) as found:
        shape(row)
    assert found.value.reason.name == "DatasetInvalid"
    assert found.value.message.startswith("row 1")
    assert message in found.value.message


@pytest.mark.parametrize(
    ("row", "renames"),
    [
        ({"text": "a", "sys": "b"}, {"text": "text", "system": "sys"}),
        ({"prompt": "a", "completion": "b", "sys": "c"}, {"system": "sys"}),
        ({"messages": [ASKED], "q": "b"}, {"prompt": "q"}),
    ],
)
def test_a_column_that_the_format_does_not_use_is_refused(row: dict[str, Any], renames: dict[str, str]) -> None:
    with pytest.raises(HoneError, match="have no use for") as found:
        shape(row, renames)
    assert found.value.reason.name == "InvalidSpec"


def test_columns_without_use_are_counted_unless_they_describe_the_row(prepare: Prepare) -> None:
    done = prepare([{"text": "a", "id": 1, "system": "b"}, {"text": "b", "id": 2, "system": None}])
    assert "1 of 2 rows have the column system, which is not used: rows are read as text from text" in done.log
    assert "column id" not in done.log


def test_reserved_arguments_are_those_of_transformers() -> None:
    parameters = set(inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters)
    assert parameters - {"self", "kwargs", "documents"} <= RESERVED_ARGUMENTS


def test_rows_of_mixed_kinds_are_named(prepare: Prepare) -> None:
    rows = [{"prompt": "a", "completion": "b"}, {"prompt": [ASKED], "completion": [ANSWERED]}]
    for given, first, second in ((rows, 1, 2), (rows[::-1], 2, 1)):
        done = prepare(given)
        assert done.message["reason"] == "DatasetInvalid"
        assert f"text in rows.jsonl, line {first} and messages in rows.jsonl, line {second}" in done.message["message"]


def test_optional_columns_may_begin_in_any_row(prepare: Prepare) -> None:
    rows = [{"instruction": "a", "output": "b"}, {"instruction": "a", "output": "b", "input": "c", "system": "d"}]
    assert learned(prepare(rows)) == ["user:a</s>assistant:b</s>", "system:d</s>user:a\n\nc</s>assistant:b</s>"]


def test_tools_calls_reasoning_and_arguments_reach_the_template(prepare: Prepare) -> None:
    answer = {"role": "assistant", "content": None, "tool_calls": [CALL], "thinking": "hm"}
    parts = {"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]}
    rows = [
        {"messages": [parts, answer, {"role": "tool", "content": "ok"}], "tools": [TOOL]},
        {"messages": [ASKED, ANSWERED], "chat_template_kwargs": {"style": "short"}},
    ]
    done = prepare(rows, maxLength=None)
    first, second = learned(done)
    tools, calls = (json.dumps(value).replace(" ", "") for value in ([TOOL], [CALL]))
    assert first == f"{tools}user:hi</s>assistant:(hm){calls}</s>tool:ok</s>"
    assert second == "<short>user:hi</s>assistant:ho</s>"
    assert "does not" not in done.log


def test_numbers_reach_the_template_as_they_are_written(prepare: Prepare) -> None:
    numbers = [0.7, 3.141592653589793, 1.5e-12, -0.0, 10**30, -(10**25), 2**63, 1e300]
    call = {"type": "function", "function": {"name": "find", "arguments": {"numbers": numbers}}}
    tool = {"type": "function", "function": {"name": "find", "parameters": {"minimum": 0.7}}}
    asked = {"prompt": [ASKED], "completion": [{"role": "assistant", "tool_calls": [call]}], "tools": [tool]}
    done = prepare([asked, asked | {"chat_template_kwargs": {"style": 0.7}}], maxLength=None)
    assert done.code == 0, done.log
    tokenizer = AutoTokenizer.from_pretrained(done.output.parent.parent / "claim/tiny")
    first, second = (tokenizer.decode(row["input_ids"]) for row in load_from_disk(str(done.output / "prepared/train")))
    assert json.dumps([call]) in first
    assert json.dumps([tool]) in first
    assert "<0.7>" in second


def test_keys_that_the_template_does_not_read_are_counted(prepare: Prepare) -> None:
    string_call = {"function": {"name": "find", "arguments": '{"a": 1}'}}
    rows = [
        {"messages": [ASKED, {**ANSWERED, "reasoning_content": "hm", "tool_calls": [string_call]}], "tools": [TOOL]},
        {"messages": [{**ASKED, "name": "Ann"}, ANSWERED], "chat_template_kwargs": {"style": "short"}},
    ]
    done = prepare(rows, "{% for m in messages %}{{ m.role }}:{{ m.content }}{{ eos_token }}{% endfor %}")
    assert "1 of 4 messages have the key reasoning_content, which the chat template does not read" in done.log
    assert "1 of 4 messages have the key tool_calls, which the chat template does not read" in done.log
    assert "1 of 2 rows have tools, which the chat template does not read" in done.log
    assert "1 of 2 rows set style in chat_template_kwargs, which the chat template does not read" in done.log
    assert "key name" not in done.log
    assert "1 of 4 messages have tool_calls whose arguments are a string" in prepare(rows).log


def test_parts_are_joined_when_the_template_takes_only_strings(prepare: Prepare) -> None:
    parts = {"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]}
    done = prepare(
        [{"messages": [parts, ANSWERED]}], "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    )
    assert learned(done) == ["h\ni</s>ho</s>"]
    assert "1 of 2 messages have content in parts" in done.log


def test_a_missing_content_is_written_as_nothing(prepare: Prepare) -> None:
    turn = {"role": "assistant", "content": None, "tool_calls": []}
    done = prepare([{"messages": [ASKED, turn]}], "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}")
    assert learned(done) == ["hi</s></s>"]


TURNS = [ASKED, {**ANSWERED, "content": "first"}, {**ASKED, "content": "and?"}, {**ANSWERED, "content": "second"}]


@pytest.mark.parametrize("flag", [{"weight": 0}, {"train": False}])
def test_a_message_can_be_left_out_of_the_loss(prepare: Prepare, flag: dict[str, Any]) -> None:
    rows = [
        {"messages": [TURNS[0], TURNS[1] | flag, *TURNS[2:]]},
        {"messages": [*TURNS[:3], TURNS[3] | flag]},
        {"messages": TURNS},
    ]
    done = prepare(rows, GENERATION_TEMPLATE, assistantOnlyLoss=True)
    assert learned(done) == ["second</s>", "first</s>", "first</s>second</s>"]
    done = prepare(rows, GENERATION_TEMPLATE)
    both = "user:hi</s>assistant:first</s>user:and?</s>assistant:second</s>"
    assert learned(done) == [both.replace("first</s>", ""), both.replace("second</s>", ""), both]
    assert "2 of 12 messages are excluded by weight or train, and all others are learned" in done.log


def test_the_message_after_an_excluded_one_is_learned_in_the_same_run(prepare: Prepare) -> None:
    turn = "{{ m.role }}:{{ m.content }}{{ eos_token }}"
    marked = "{% for m in messages %}{% generation %}" + turn + "{% endgeneration %}{% endfor %}"
    rows = [{"messages": [ASKED, {**ANSWERED, "content": "bad", "weight": 0}, {**ANSWERED, "content": "good"}]}]
    assert learned(prepare(rows, marked, assistantOnlyLoss=True)) == ["user:hi</s>assistant:good</s>"]


def test_text_between_an_excluded_turn_and_its_end_token_is_not_learned(prepare: Prepare) -> None:
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }} . {{ eos_token }}{% endfor %}"
    rows = [{"messages": [ASKED, {**ANSWERED, "weight": 0}, ASKED, ANSWERED]}]
    assert learned(prepare(rows, template)) == ["user:hi.</s>assistant:user:hi.</s>assistant:ho.</s>"]


def test_an_excluded_message_that_changes_other_turns_is_refused_by_name(prepare: Prepare) -> None:
    template = (
        "{% set last = namespace(at=-1) %}{% for m in messages %}{% if m.role == 'user' and not "
        "m.content.startswith('<r>') %}{% set last.at = loop.index0 %}{% endif %}{% endfor %}"
        "{% for m in messages %}{% if loop.index0 > last.at %}(think){% endif %}{{ m.content }}{{ eos_token }}"
        "{% endfor %}"
    )
    result = {"role": "user", "content": "<r>ok", "weight": 0}
    rows = [{"messages": [ASKED, ANSWERED, result, {**ANSWERED, "content": "done"}]}]
    assert learned(prepare(rows, template)) == ["hi</s>(think)ho</s>(think)(think)done</s>"]
    done = prepare(
        [{"messages": [ASKED, ANSWERED, {**result, "content": [{"type": "text", "text": "<r>ok"}]}]}], template
    )
    assert learned(done) == ["hi</s>(think)ho</s>(think)"]
    hides = (
        "{% for m in messages %}{% if not messages[-1].content.startswith('x') %}{{ m.content }}{% endif %}."
        "{{ eos_token }}{% endfor %}"
    )
    done = prepare([{"messages": [ASKED, {**ANSWERED, "content": "xy", "weight": 0}]}], hides)
    assert done.message["reason"] == "DatasetInvalid"
    assert "rows.jsonl, line 1 has messages with weight: 0" in done.message["message"]


def test_a_turn_of_a_completion_can_be_left_out_of_the_loss(prepare: Prepare) -> None:
    rows = [{"prompt": TURNS[:1], "completion": [TURNS[1] | {"weight": 0}, *TURNS[2:]]}]
    assert learned(prepare(rows, GENERATION_TEMPLATE)) == ["user:and?</s>assistant:second</s>"]


def test_a_flag_that_assistant_only_loss_overrides_is_counted(prepare: Prepare) -> None:
    done = prepare([{"messages": [{**ASKED, "weight": 1}, ANSWERED]}], GENERATION_TEMPLATE, assistantOnlyLoss=True)
    assert "1 of 2 messages are not the assistant's and have weight: 1" in done.log
