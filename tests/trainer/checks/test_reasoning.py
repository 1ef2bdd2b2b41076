"""Reasoning that the template leaves out is counted: that of earlier answers, and that of the last one."""

from collections.abc import Callable
from typing import Any

import pytest

Warnings = Callable[..., list[str]]

END = "<|im_end|>"
EARLIER = "have reasoning in answers before the last one"
LAST = "have reasoning in their last answer"
THINKING = "'<think>' + m.reasoning_content + '</think>' if m.reasoning_content else ''"
SPLIT = "m.content.split('</think>')[-1]"
TEMPLATES = {
    # the form of reasoning and content, for all answers and for the last one
    "keeps all": (f"({THINKING}) + m.content",) * 2,
    "keeps the last": (SPLIT, f"({THINKING}) + m.content"),
    "keeps none": ("'' if m.reasoning_content and false else " + SPLIT,) * 2,
    "writes JSON": (f"({THINKING}) | tojson + (m.content | tojson)",) * 2,
}


def make_template(others: str, last: str) -> str:
    return (
        "{% for m in messages %}{{ m.role + ':' }}{% if m.role != 'assistant' %}{{ m.content }}{% elif loop.last %}"
        f"{{{{ {last} }}}}{{% else %}}{{{{ {others} }}}}{{% endif %}}{{{{ '{END}' }}}}{{% endfor %}}"
    )


def write_key(thought: str) -> dict[str, Any]:
    return {"role": "assistant", "content": "done", "reasoning_content": thought}


def write_other_key(thought: str) -> dict[str, Any]:
    return {"role": "assistant", "content": "done", "thinking": thought}


def write_tags(thought: str) -> dict[str, Any]:
    return {"role": "assistant", "content": f"<think>\n{thought}\n</think>\n\ndone"}


def write_end_alone(thought: str) -> dict[str, Any]:
    return {"role": "assistant", "content": f"{thought}</think>done"}


@pytest.mark.parametrize("way", [write_key, write_other_key, write_tags, write_end_alone])
@pytest.mark.parametrize("kind", TEMPLATES)
def test_reasoning_that_is_left_out_is_counted(
    warnings_of: Warnings, tokenizer_of: Callable[..., Any], kind: str, way: Callable[[str], dict[str, Any]]
) -> None:
    tokenizer = tokenizer_of(END, make_template(*TEMPLATES[kind]))
    asked, plain = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
    rows = [
        [asked, plain, asked, plain],  # no reasoning
        [asked, way('Let "me" see.'), asked, plain],  # only in an earlier answer
        [asked, plain, asked, way("Let me see.")],  # only in the last answer
        [asked, way(" \n"), asked, way("")],  # empty
        [asked, way("First."), asked, way("Second.")],
    ]
    found = [text for text in warnings_of([{"messages": row} for row in rows], tokenizer) if "have reasoning" in text]
    expected = {
        "keeps all": [],
        "writes JSON": [],
        "keeps the last": [("2 of 5", EARLIER, 2)],
        "keeps none": [("1 of 5", EARLIER, 2), ("2 of 5", LAST, 3)],
    }[kind]
    assert len(found) == len(expected)
    for text, (count, said, line) in zip(found, expected, strict=True):
        assert text.startswith(f"{count} rows to train on {said}")
        assert text.endswith(f"(first: rows.jsonl, line {line})")


def test_reasoning_that_is_not_learned_is_not_counted(warnings_of: Warnings, tokenizer_of: Callable[..., Any]) -> None:
    tokenizer = tokenizer_of(END, make_template(*TEMPLATES["keeps the last"]))
    asked = {"role": "user", "content": "q"}
    pairs = [{"prompt": [asked, write_key("One."), asked], "completion": [write_key("Two.")]}]
    assert not [text for text in warnings_of(pairs, tokenizer) if "have reasoning" in text]
    rows = [{"messages": [asked, write_key("One.") | {"weight": 0}, asked, write_key("Two.")]}]
    assert not [text for text in warnings_of(rows, tokenizer) if "have reasoning" in text]
