"""With assistantOnlyLoss: check that the learned tokens are those that the chat template marks as the assistant's.

transformers finds the tokens of a marked text by its first and its last character. If the last one has no token of its
own, because the tokenizer drops it, everything after it is learned; if the first one has none, neither this turn is
learned nor any later one. Plain TRL does the same, so Hone reports such rows and changes none.
"""

from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from hone_trainer.checks.conversations import iterate_rows
from hone_trainer.checks.findings import Finding, make_findings
from hone_trainer.data.formats import get_conversation, get_template_arguments
from hone_trainer.data.messages import is_learned
from hone_trainer.data.statistics import IGNORED


def find_mislabelled(
    given: Dataset, whole: Dataset, sample: list[int], tokenizer: PreTrainedTokenizerBase, template: str | None
) -> list[Finding]:
    """Return the rows, of the sample, that learn other tokens than those of the assistant's turns.

    `whole` is the same rows as tokens and labels, made with the markers of `template`, None: the tokenizer's.
    """
    foreign, missed = [], []
    foreign_tokens = missed_tokens = 0
    rows = zip(sample, iterate_rows(given.select(sample)), iterate_rows(whole.select(sample)), strict=True)
    for index, row, tokens in rows:
        marked = _find_marked_tokens(row, tokens["input_ids"], tokenizer, template)
        if marked is None:
            continue
        is_marked, has_text = marked
        is_label = np.array(tokens["labels"]) != IGNORED
        if count := int((is_label & ~is_marked & has_text).sum()):
            foreign.append(index)
            foreign_tokens += count
        if count := int((_get_expected(row, is_marked, is_label) & ~is_label).sum()):
            missed.append(index)
            missed_tokens += count
    otherwise = "or give prompt and completion in place of messages"
    return [
        *make_findings(
            foreign,
            f"learn {foreign_tokens} tokens that are not the assistant's, because the tokenizer makes no token of what "
            f"stands last in {{% generation %}}: end that right after the token that ends a turn, {otherwise}",
            len(sample),
        ),
        *make_findings(
            missed,
            f"do not learn {missed_tokens} tokens of the assistant's turns, because the tokenizer makes no token of "
            f"what stands first in {{% generation %}}: let neither template nor answers begin with it, {otherwise}",
            len(sample),
        ),
    ]


def _find_marked_tokens(
    row: dict[str, Any], ids: list[int], tokenizer: PreTrainedTokenizerBase, template: str | None
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return for each token whether it is in marked text, and whether it is in any text; None: this can't be
    determined.
    """
    arguments = get_template_arguments(row)
    tools = arguments.pop("tools")
    messages = [
        {key: value for key, value in message.items() if value is not None} for message in get_conversation(row)
    ]
    found: Any = render_jinja_template(  # as apply_chat_template calls it
        conversations=[messages],
        tools=tools,
        chat_template=tokenizer.get_chat_template(template, tools),
        return_assistant_tokens_mask=True,
        **{**tokenizer.special_tokens_map, **arguments},
    )
    (text,), (spans,) = found
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    if encoded["input_ids"] != ids:
        return None
    before = np.zeros(len(text) + 1, np.int64)  # marked characters before each position
    for start, end in spans:
        before[start + 1 : end + 1] = 1
    before = np.cumsum(before)
    starts, ends = np.array(encoded["offset_mapping"], np.int64).reshape(-1, 2).T
    return before[ends] > before[starts], ends > starts


def _get_expected(row: dict[str, Any], is_marked: np.ndarray, is_label: np.ndarray) -> np.ndarray:
    """Return for each token whether it should be learned, as far as that is certain."""
    if not all(map(is_learned, get_conversation(row))):
        return np.zeros_like(is_marked)
    if "messages" in row:
        return is_marked
    return is_marked & np.logical_or.accumulate(is_label)  # a completion begins with its first label
