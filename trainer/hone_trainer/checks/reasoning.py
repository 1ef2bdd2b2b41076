"""Reasoning in the rows that the chat template leaves out, as most templates do for all answers but the last."""

import re
from collections.abc import Iterator
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from hone_trainer.checks.contents import get_texts
from hone_trainer.checks.conversations import iterate_rows
from hone_trainer.checks.findings import Finding, make_findings
from hone_trainer.checks.renderings import is_written, remove_whitespace
from hone_trainer.data import chat_templates
from hone_trainer.data.formats import get_conversation, get_template_arguments
from hone_trainer.data.messages import Message, is_learned
from hone_trainer.data.template_reads import REASONING

_TAGS = re.compile("</?think>")


def find_dropped_reasoning(
    given: Dataset, sample: list[int], tokenizer: PreTrainedTokenizerBase, template: str | None, source: str
) -> list[Finding]:
    """Return the rows, of the sample, with reasoning in answers to learn that their rendering lacks.

    `source` is the text of the template. A key that it does not read is reported elsewhere, and so is a template that
    prints nothing of content that is a string.
    """
    if chat_templates.needs_parts(tokenizer):
        return []
    keys = REASONING if any(re.search(rf"\b{key}\b", source) for key in REASONING) else ()
    earlier, last = [], []
    for index, row in zip(sample, iterate_rows(given.select(sample)), strict=True):
        answers = [message for message in row.get("completion", get_conversation(row)) if _is_answer(message)]
        thoughts = [list(_read_reasoning(answer, keys)) for answer in answers]
        if not any(thoughts):
            continue
        rendered = chat_templates.render_messages(
            tokenizer, get_conversation(row), chat_template=template, **get_template_arguments(row)
        )
        plain = remove_whitespace(rendered)
        lost = [any(not is_written(thought, plain) for thought in of_answer) for of_answer in thoughts]
        if lost[-1]:
            last.append(index)
        elif any(lost):
            earlier.append(index)
    remedy = "a template that keeps it in spec.dataset.chatTemplate"
    return [
        *make_findings(
            earlier,
            "have reasoning in answers before the last one, which the chat template leaves out, so that these answers "
            f"are learned without it: write a row for each answer, with that answer last, or give {remedy}",
            len(sample),
        ),
        *make_findings(
            last,
            f"have reasoning in their last answer, which the chat template leaves out: give {remedy}, or remove it",
            len(sample),
        ),
    ]


def _is_answer(message: Message) -> bool:
    return message["role"] == "assistant" and is_learned(message)


def _read_reasoning(message: Message, keys: tuple[str, ...]) -> Iterator[str]:
    """Yield the thoughts of a message, in a key of their own and before `</think>` in its content."""
    for key in keys:
        value: Any = message.get(key)
        if isinstance(value, str) and value.strip():
            yield value
    for text in get_texts(message):
        thoughts, end, _ = text.rpartition("</think>")
        if end:
            yield from filter(str.strip, _TAGS.split(thoughts))
