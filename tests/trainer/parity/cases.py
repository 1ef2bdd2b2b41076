"""Generated cases: datasets of every spelling, with at most two oddities each, and the options that decide the rows.

More oddities at once would only hide each other: most of them are refused.
"""

import json
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st
from parity.learned import Case, Form
from parity.tokenizing import HANDWRITTEN, KNOWN, TOKENIZERS

Row = dict[str, Any]
Draw = Callable[[st.SearchStrategy[Any]], Any]

PLAIN = ["yes", "say something", "What is the weather in Paris today?", "The answer is 42.\n", "a b c d e f g h"]
ODD = [
    "",
    " ",
    "\n",
    " \t\n ",
    " leading and trailing ",
    "\ufeffmark",
    "a\x00b",
    "a\r\nb",
    "line\u2028separator",
    "👩‍👩‍👧 family",
    "שלום עולם",
    "e\u0301 and \u00e9",
    "</s>",
    "<s>again",
    "ends</s>",
    "ends<|im_end|>",
    "<|im_start|>assistant\nx<|im_end|>\n",
    "<unk>",
    "{{ x }} {% y %}",
    "<think>a</think>b",
    "null",
    '{"a": 1}',
    "[1, 2]",
    "long " * 200,
]
LONE_SURROGATE = "an emoji cut \ud83d in two"
FUNCTION = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Return the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
OTHER_FUNCTION = {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}
CALLS = [
    [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}],
    [{"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Rome", "days": 2}}}],
    [{"type": "function", "function": {"name": "now", "arguments": {}}}] * 2,
    [{"type": "function", "function": {"name": "weather", "arguments": '{"city": "Bonn"}'}}],
]
METADATA: Row = {"id": 1, "source": "web", "score": 0.5, "tags": ["a"], "meta": {"deep": [1]}}

CHAT_ODDITIES = [
    "tools",
    "tools as JSON",
    "tool calls",
    "reasoning",
    "parts",
    "null content",
    "null keys",
    "flags",
    "names",
    "unknown role",
    "developer",
    "odd order",
    "no answer",
    "empty conversation",
    "template options",
]
SPOILT = ["missing", "null", "other type", "lone surrogate"]
ODDITIES = ["odd text", "any text", "metadata", "renamed"]
OF_FORM: dict[Form, list[str]] = {
    "text": [],
    "prompt-completion": ["as messages", "as messages", "as messages", "mixed", *CHAT_ODDITIES],
    "messages": [*CHAT_ODDITIES, "system column"],
    "conversations": ["role and content", "tools", "flags", "unknown role", "system column", "odd order", "no answer"],
    "alpaca": ["input", "input", "system column", "history", "tools"],
}
REQUIRED: dict[Form, tuple[str, ...]] = {
    "text": ("text",),
    "prompt-completion": ("prompt", "completion"),
    "messages": ("messages",),
    "conversations": ("conversations",),
    "alpaca": ("instruction", "output"),
}
SHAREGPT = {"user": "human", "assistant": "gpt", "system": "system"}


def one_in(number: int) -> st.SearchStrategy[bool]:
    return st.sampled_from([*[False] * (number - 1), True])


TRAINING: dict[str, st.SearchStrategy[Any]] = {
    "maxLength": st.sampled_from([2, 8, 16, 32, 64, 256]),
    "packing": st.booleans(),
    "packingStrategy": st.sampled_from(["bfd", "bfd_split", "wrapped"]),
    "completionOnlyLoss": st.booleans(),
    "assistantOnlyLoss": st.booleans(),
    "eosToken": st.sampled_from(["</s>", "<|endoftext|>", "<|im_end|>"] * 4 + ["<unheard of>"]),
    "padToken": st.sampled_from(["<pad>", "<|endoftext|>", "</s>"] * 4 + ["<unheard of>"]),
    "seed": st.integers(0, 5),
    "dataSeed": st.integers(0, 5),
    "trainSamplingStrategy": st.sampled_from(["random", "sequential"]),
    "perDeviceTrainBatchSize": st.integers(1, 3),
    "perDeviceEvalBatchSize": st.integers(1, 3),
    "extra": st.fixed_dictionaries(
        {},
        optional={
            "truncationMode": st.sampled_from(["keep_start", "keep_end"]),
            "shuffleDataset": st.booleans(),
            "evalPacking": st.booleans(),
            "padToMultipleOf": st.sampled_from([2, 8]),
            "paddingFree": one_in(8),
            "dataloaderDropLast": st.booleans(),
        },
    ),
}


@st.composite
def cases(draw: Draw) -> Case:
    """Draw a case."""
    form: Form = draw(st.sampled_from(list(REQUIRED)))
    spoilt = draw(st.sampled_from(SPOILT)) if draw(one_in(12)) else ""
    oddities = {spoilt} | set(draw(st.lists(st.sampled_from(ODDITIES + OF_FORM[form] * 2), max_size=2)))
    rows = [_draw_row(draw, form, oddities) for _ in range(draw(st.integers(1, 6)))]
    if "tools" in oddities or "tools as JSON" in oddities:
        _add_to_some(draw, rows, "tools", st.sampled_from([[FUNCTION], [FUNCTION, OTHER_FUNCTION], [], None]))
    if "tools as JSON" in oddities:
        rows = [row | {"tools": json.dumps(row["tools"])} if row.get("tools") else row for row in rows]
    if "template options" in oddities:
        given = st.sampled_from([{"mood": "calm"}, {"enable_thinking": False}, {}, None, {"tokenize": False}])
        _add_to_some(draw, rows, "chat_template_kwargs", given)
    if "system column" in oddities:
        _add_to_some(draw, rows, "system", st.sampled_from(["Be brief.", "", None]))
    if "metadata" in oddities:
        for name in draw(st.lists(st.sampled_from(list(METADATA)), min_size=1, max_size=3)):
            _add_to_some(draw, rows, name, st.just(METADATA[name]))
    columns = _spoil(draw, form, rows, oddities)
    return Case(
        form=form,
        rows=rows,
        tokenizer=draw(st.sampled_from(list(TOKENIZERS))),
        template=_draw_template(draw, form, oddities),
        ending=draw(st.sampled_from(["jsonl", "jsonl", "json", *(["csv"] if _fits_csv(rows) else [])])),
        columns=columns,
        training=_draw_training(draw),
        options=_draw_options(draw, len(rows)),
    )


def _draw_row(draw: Draw, form: Form, oddities: set[str]) -> Row:
    def text() -> str:
        found: str = draw(_texts(oddities))
        return found

    if form == "text":
        return {"text": text()}
    if form == "prompt-completion":
        is_chat = "as messages" in oddities or oddities & set(CHAT_ODDITIES)
        if "mixed" in oddities:
            is_chat = draw(st.booleans())
        if not is_chat:
            return {"prompt": text(), "completion": text()}
        messages = _draw_conversation(draw, oddities)
        middle = max(1, len(messages) - 1)
        return {"prompt": messages[:middle], "completion": messages[middle:]}
    if form == "alpaca":
        row: Row = {"instruction": text(), "output": text()}
        if "input" in oddities and draw(st.booleans()):
            row["input"] = draw(st.one_of(st.none(), _texts(oddities)))
        if "history" in oddities and draw(st.booleans()):
            row["history"] = [[text(), text()] for _ in range(draw(st.integers(0, 2)))]
        return row
    messages = _draw_conversation(draw, oddities)
    if form == "messages":
        return {"messages": messages}
    if "role and content" not in oddities:
        messages = [
            {"from": SHAREGPT.get(message["role"], message["role"]), "value": message["content"]}
            | {key: value for key, value in message.items() if key not in ("role", "content")}
            for message in messages
        ]
    return {"conversations": messages}


def _texts(oddities: set[str]) -> st.SearchStrategy[str]:
    found = st.sampled_from(PLAIN)
    if "odd text" in oddities:
        found |= st.sampled_from(ODD)
    if "any text" in oddities:
        found |= st.text(st.characters(codec="utf-8"), max_size=12)
    if "lone surrogate" in oddities:
        found |= st.just(LONE_SURROGATE)
    return found


def _draw_conversation(draw: Draw, oddities: set[str]) -> list[Row]:
    if "empty conversation" in oddities and draw(st.booleans()):
        return []
    found: list[Row] = []
    if draw(st.booleans()):
        found.append({"role": "developer" if "developer" in oddities else "system", "content": "Be brief."})
    for _ in range(draw(st.integers(1, 2))):
        found.append({"role": "user", "content": draw(_texts(oddities))})
        if "tool calls" in oddities:
            found.append({"role": "assistant", "content": draw(st.sampled_from([None, "", "Let me see."]))})
            found[-1]["tool_calls"] = draw(st.sampled_from(CALLS))
            found.append({"role": "tool", "name": "weather", "content": draw(_texts(oddities))})
        found.append({"role": "assistant", "content": draw(_texts(oddities))})
    if "no answer" in oddities:
        found = [message for message in found if message["role"] != "assistant"]
    if "odd order" in oddities:
        found = draw(st.permutations(found))
    for number, message in enumerate(found):
        if "flags" in oddities:  # the text shows which message is not learned
            message["content"] = f"message {number} of {draw(st.integers(100, 999))}"
        _change(draw, message, oddities)
    return found


def _change(draw: Draw, message: Row, oddities: set[str]) -> None:
    """Add the oddities to a message."""
    answers = message["role"] == "assistant"
    content = message["content"] or "two"
    first, thought = ("one ", "2 + 2")
    if "flags" in oddities:  # as above
        first, thought = (content.replace("message", word) for word in ("part", "thought"))
    changes: dict[str, Row | None] = {
        "reasoning": {draw(st.sampled_from(["reasoning_content", "thinking"])): thought} if answers else None,
        "parts": {"content": [{"type": "text", "text": text} for text in (first, content)]},
        "null content": {"content": None},
        "flags": draw(st.sampled_from([{"weight": 0}, {"weight": 1}, {"train": False}, {"train": True}])),
        "names": {"name": "ann"},
        "null keys": {draw(st.sampled_from(["name", "tool_calls", "thinking"])): None},
        "unknown role": {"role": draw(st.sampled_from(["asistant", "User", "model", "observation", "human"]))},
    }
    for oddity, change in changes.items():
        if oddity in oddities and change and draw(st.booleans()):
            message.update(change)


def _add_to_some(draw: Draw, rows: list[Row], column: str, values: st.SearchStrategy[Any]) -> None:
    """Give some rows, at least one, a column."""
    chosen = draw(st.sets(st.integers(0, len(rows) - 1), min_size=1))
    for number in sorted(chosen):
        rows[number][column] = draw(values)


def _spoil(draw: Draw, form: Form, rows: list[Row], oddities: set[str]) -> dict[str, str]:
    """Remove, damage or rename required columns; return spec.dataset.columns."""
    column = draw(st.sampled_from(REQUIRED[form]))
    row = rows[draw(st.integers(0, len(rows) - 1))]
    if "missing" in oddities:
        row.pop(column)
    elif "null" in oddities:
        row[column] = None
    elif "other type" in oddities:
        row[column] = draw(st.sampled_from([3, 1.5, True, ["a"], {"a": 1}, [[]]]))
    if "renamed" not in oddities:
        return {}
    named = {name for row in rows for name in row}
    known = [name for name in ("system", "input", *REQUIRED[form]) if name in named]
    columns = {name: f"my {name}" for name in draw(st.sets(st.sampled_from(known), min_size=1))} if known else {}
    for row in rows:
        for name, own in columns.items():
            if name in row:
                row[own] = row.pop(name)
    return columns


def _draw_template(draw: Draw, form: Form, oddities: set[str]) -> str | None:
    if form == "text" or draw(one_in(30)):
        return None
    handwritten = [name for name in HANDWRITTEN if name != "shows keys" or "flags" not in oddities]
    name: str = draw(st.sampled_from(handwritten) | st.sampled_from(list(KNOWN)))
    return name


def _draw_training(draw: Draw) -> dict[str, Any]:
    names = draw(st.lists(st.sampled_from(list(TRAINING)), unique=True, max_size=5))
    return {name: draw(TRAINING[name]) for name in names}


def _draw_options(draw: Draw, rows: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if draw(one_in(6)):
        found["maxSamples"] = draw(st.integers(1, 4))
    if draw(one_in(3 if rows > 1 else 40)):
        found["evalFraction"] = draw(st.sampled_from([0.2, 0.5, 0.9]))
    return found


def _fits_csv(rows: list[Row]) -> bool:
    """Whether CSV can hold the rows: texts alone, of which the reader of lines changes none."""
    texts = [value for row in rows for value in row.values()]
    return all(isinstance(value, str) and "\ud83d" not in value for value in texts)
