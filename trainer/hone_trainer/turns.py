"""Take messages with `weight: 0` or `train: false` out of the loss.

TRL knows no such flags, so this runs on its result: rows of tokens and labels at full length. A message is found in
the rendered row by rendering the row once more with another text in its place: what differs is the message. Next:
`Tokenizing.cut`, which drops rows that have no label left.
"""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

from datasets import Dataset
from hone_api.reasons import INVALID_SPEC, HoneError
from hone_api.training import TrainingArguments
from transformers import PreTrainedTokenizerBase

from hone_trainer.data import Data
from hone_trainer.datareport import IGNORED
from hone_trainer.formats import get_conversation, get_template_arguments
from hone_trainer.messages import is_learned

# A character for private use, which no template trims and no text is likely to begin or end with.
MARK = "\ue000"


def exclude_turns(
    given: Dataset, tokenized: Dataset, tokenizer: PreTrainedTokenizerBase, template: str | None, *, by_markers: bool
) -> Dataset:
    """Return `tokenized` (columns input_ids, labels) with the labels of excluded messages set to IGNORED.

    `given` are the shaped rows in the same order; `template` is the chat template, None: the tokenizer's. `by_markers`:
    the labels already leave out what the template does not mark as the assistant's. Raises HoneError InvalidSpec when
    the tokenizer does not report where its tokens stand in the text.
    """
    if not tokenizer.is_fast:
        raise HoneError(
            INVALID_SPEC,
            "Rows have messages with weight: 0 or train: false, and the tokenizer of spec.model does not report where "
            "a token stands in the text",
            remedy="Use a model with a fast tokenizer (tokenizer.json), or remove weight and train from the messages.",
        )

    def exclude(row: dict[str, Any], index: int) -> dict[str, Any]:
        messages = get_conversation(given[index])
        spans = list(_find_spans(row["input_ids"], messages, get_template_arguments(given[index]), tokenizer, template))
        return row | {"labels": _ignore(row, spans, set(tokenizer.all_special_ids), by_markers=by_markers)}

    return tokenized.map(exclude, with_indices=True)


def find_flags_without_effect(data: Data, training: TrainingArguments) -> list[str]:
    """Return warnings about flags of messages that do less than their authors may expect."""
    counts, found = data.messages, []
    if counts.unlearned and data.format == "messages" and not training.assistant_only_loss:
        found.append(
            f"{counts.unlearned} of {counts.messages} messages are excluded by weight or train, and all others are "
            "learned, those of users included: set spec.training.assistantOnlyLoss to learn the assistant's alone"
        )
    if counts.marked_others and training.assistant_only_loss:
        found.append(
            f"{counts.marked_others} of {counts.messages} messages are not the assistant's and have weight: 1 or "
            "train: true, and spec.training.assistantOnlyLoss learns the assistant's alone"
        )
    return found


def _find_spans(
    tokens: list[int],
    messages: list[dict[str, Any]],
    arguments: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    template: str | None,
) -> Iterator[range]:
    """Yield the positions of the tokens of each excluded message; none: where the next token stands."""

    def render(conversation: list[dict[str, Any]]) -> str:
        return str(tokenizer.apply_chat_template(conversation, chat_template=template, tokenize=False, **arguments))

    if all(is_learned(message) for message in messages):
        return
    text = render(messages)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    assert encoded["input_ids"] == tokens, "the row was tokenized in another way"
    offsets = encoded["offset_mapping"]
    for index, message in enumerate(messages):
        if not is_learned(message):
            replaced = {"role": message["role"], "content": MARK}
            start, end = _find_difference(text, render([*messages[:index], replaced, *messages[index + 1 :]]))
            first = next((at for at, (_, stop) in enumerate(offsets) if stop > start), len(tokens))
            yield range(first, next((at for at, (begin, _) in enumerate(offsets) if begin >= end), len(tokens)))


def _find_difference(text: str, other: str) -> tuple[int, int]:
    """Return where the part of `text` begins and ends that `other` does not share."""
    start = _count_equal(zip(text, other, strict=False))
    return start, len(text) - _count_equal(zip(reversed(text[start:]), reversed(other[start:]), strict=False))


def _count_equal(pairs: Iterable[tuple[str, str]]) -> int:
    """Return how many pairs come before the first one of different letters."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _ignore(row: dict[str, Any], spans: list[range], special: set[int], *, by_markers: bool) -> list[int]:
    """Return the row's labels with the spans ignored, and with each the token that ends its turn.

    With markers, that is the rest of the run of labels in which the span lies: the template marks one run a turn.
    """
    tokens, given = row["input_ids"], row["labels"]
    labels = list(given)
    for span in spans:
        first, end = span.start, span.stop
        if by_markers:
            while first > 0 and given[first - 1] != IGNORED and (first < len(given) and given[first] != IGNORED):
                first -= 1
            while end < len(given) and given[end] != IGNORED:
                end += 1
        elif end < len(tokens) and tokens[end] in special:
            end += 1
        labels[first:end] = [IGNORED] * (end - first)
    return labels
