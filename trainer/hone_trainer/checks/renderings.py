"""Faults in what the chat template makes of rows: text that it leaves out, and prompts that end differently alone.

Input is a sample of the rows, which are rendered once more; output is findings for `tokenized`. Texts are compared
without white space, since templates trim and indent.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterator

from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl.data_utils import _tokenize, is_conversational

from hone_trainer.checks.contents import get_texts
from hone_trainer.checks.conversations import iterate_rows
from hone_trainer.checks.findings import Finding, make_findings
from hone_trainer.checks.special_tokens import adds_end
from hone_trainer.data import chat_templates
from hone_trainer.data.exact_numbers import restore_numbers
from hone_trainer.data.formats import get_conversation, get_template_arguments
from hone_trainer.data.messages import Message

# Templates of reasoning models leave out the thoughts of earlier turns on purpose: `reasoning` checks these.
_THOUGHT = re.compile(r".*</think>", re.DOTALL)


def find_dropped_text(
    given: Dataset, sample: list[int], tokenizer: PreTrainedTokenizerBase, template: str | None
) -> list[Finding]:
    """Return for each role the rows, of the sample, that lose text of its messages when they are rendered."""
    lost: dict[str, list[int]] = defaultdict(list)
    for index, row in zip(sample, iterate_rows(given.select(sample)), strict=True):
        if not is_conversational(row):
            return []
        messages = get_conversation(row)
        rendered = chat_templates.render_messages(
            tokenizer, messages, chat_template=template, **get_template_arguments(row)
        )
        for role in {str(message.get("role")) for message in _find_dropped(messages, rendered)}:
            lost[role].append(index)
    remedy = "correct spec.dataset.chatTemplate, or leave such messages out"
    if lost and chat_templates.needs_parts(tokenizer):
        remedy = 'it takes content as a list of parts: write content as [{"type": "text", "text": …}]'
    return [
        finding
        for role, rows in sorted(lost.items())
        for finding in make_findings(
            rows, f"have text in messages of role {role} that the chat template leaves out: {remedy}", len(sample)
        )
    ]


def find_unaligned(
    given: Dataset, whole: Dataset, sample: list[int], tokenizer: PreTrainedTokenizerBase, template: str | None
) -> list[Finding]:
    """Return the rows, of the sample, whose prompt alone differs from the beginning of prompt and completion.

    Then the model is trained on a context that it does not get when it is used.
    """
    if "prompt" not in given.column_names:
        return []
    end = tokenizer.eos_token_id if adds_end(tokenizer) else None
    found = []
    rows = zip(sample, iterate_rows(given.select(sample)), iterate_rows(whole.select(sample)), strict=True)
    for index, row, tokens in rows:
        if is_conversational(row):
            arguments = {"chat_template": template, **get_template_arguments(row)}
            prompt = _tokenize(tokenizer, restore_numbers(row["prompt"]), add_generation_prompt=True, **arguments)[
                "input_ids"
            ]
        else:
            prompt = _tokenize(tokenizer, row["prompt"])["input_ids"]
            prompt = prompt[:-1] if end is not None and prompt[-1:] == [end] else prompt
        if tokens["input_ids"][: len(prompt)] != prompt:
            found.append(index)
    cause = "end prompts at a token's boundary, such as a line break"
    if found and is_conversational(given[found[0]]):
        cause = (
            "the chat template begins an answer differently from how it writes one, so the model learns to answer a "
        )
        cause += "prompt that it is not given"
    return make_findings(
        found, f"have a prompt that ends differently when the completion follows it: {cause}", len(sample)
    )


def is_written(text: str, squeezed: str) -> bool:
    """Return whether a squeezed rendering has the text, as it is or as JSON."""
    return remove_whitespace(text) in squeezed or any(form in squeezed for form in _escape(text))


def _find_dropped(messages: list[Message], rendered: str) -> Iterator[Message]:
    """Yield the messages whose text is not in the rendering, neither as it is nor as JSON."""
    plain = remove_whitespace(rendered)
    for message in messages:
        for text in get_texts(message):
            if not is_written(_THOUGHT.sub("", text), plain) and not is_written(text, plain):
                yield message
                break


def _escape(text: str) -> Iterator[str]:
    """Yield the text as JSON writes it, with and without letters outside ASCII."""
    for ascii_only in (True, False):
        yield remove_whitespace(json.dumps(text, ensure_ascii=ascii_only)[1:-1])


def remove_whitespace(text: str) -> str:
    """Return the text without white space, which templates trim and indent."""
    return "".join(text.split())
