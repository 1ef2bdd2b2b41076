"""Take messages with `weight: 0` or `train: false` out of the loss.

TRL knows no such flags, so this runs on its result: rows of tokens and labels at full length. `message_spans` finds
each message in the rendered row. Next: `Tokenizing.cut`, which drops rows that have no label left.
"""

from collections.abc import Callable
from typing import Any

from datasets import Dataset
from hone_api.finetunejobs.training import TrainingArguments
from hone_api.reasons import DATASET_INVALID, INVALID_SPEC, HoneError
from transformers import PreTrainedTokenizerBase

from hone_trainer.data.dataset import LoadedDataset
from hone_trainer.data.formats import get_conversation, get_template_arguments
from hone_trainer.data.message_spans import NotLocatedError, locate_messages
from hone_trainer.data.messages import is_learned
from hone_trainer.data.statistics import IGNORED


def exclude_turns(
    given: Dataset,
    tokenized: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    template: str | None,
    find_place: Callable[[int], str],
    *,
    by_markers: bool,
) -> Dataset:
    """Return `tokenized` (columns input_ids, labels) with the labels of excluded messages set to IGNORED.

    `given` are the shaped rows in the same order; `template` is the chat template, None: the tokenizer's. `find_place`
    returns the place of a row of `given`. `by_markers`: the labels already leave out what the template does not mark as
    the assistant's. Raises HoneError InvalidSpec when the tokenizer does not report where its tokens are in the text,
    DatasetInvalid when a message can't be distinguished from those around it.
    """
    if not tokenizer.is_fast:
        raise HoneError(
            INVALID_SPEC,
            "Rows have messages with weight: 0 or train: false, and the tokenizer of spec.model does not report where "
            "a token stands in the text",
            remedy="Use a model with a fast tokenizer (tokenizer.json), or remove weight and train from the messages.",
        )
    ends = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}

    def exclude(row: dict[str, Any], index: int) -> dict[str, Any]:
        messages = get_conversation(given[index])
        excluded = [number for number, message in enumerate(messages) if not is_learned(message)]
        if not excluded:
            return row
        try:
            spans = _find_spans(row["input_ids"], messages, get_template_arguments(given[index]), tokenizer, template)
        except Exception as error:  # a template may raise any exception
            raise _RowError(index, error) from error
        return row | {"labels": _ignore(row, spans, excluded, ends, by_markers=by_markers)}

    try:
        return tokenized.map(exclude, with_indices=True)
    except _RowError as found:
        raise HoneError(
            DATASET_INVALID,
            f"{find_place(found.index)} has messages with weight: 0 or train: false, which can't be left out of the "
            f"loss: {found.reason}",
            remedy="Remove weight and train from its messages, or give another template in spec.dataset.chatTemplate.",
        ) from found


class _RowError(Exception):
    """The reason why the messages of one row were not found."""

    def __init__(self, index: int, error: Exception) -> None:
        text = " ".join(str(error).split()) or "no reason was given"
        self.index = index
        self.reason = (
            text
            if isinstance(error, NotLocatedError)
            else f"the chat template fails when such a message has another text ({type(error).__name__}: {text})"
        )
        super().__init__(self.reason)


def find_flags_without_effect(data: LoadedDataset, training: TrainingArguments) -> list[str]:
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
) -> list[range | None]:
    """Return the positions of the tokens of each message; None where nothing of it is written.

    Raises NotLocatedError for an excluded message that is not found.
    """

    def render(conversation: list[dict[str, Any]]) -> str:
        return str(tokenizer.apply_chat_template(conversation, chat_template=template, tokenize=False, **arguments))

    text = render(messages)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    if encoded["input_ids"] != tokens:
        raise NotLocatedError("its text gives other tokens each time it is tokenized")
    offsets = encoded["offset_mapping"]
    spans: list[range | None] = []
    for region in locate_messages(text, messages, render, lambda message: not is_learned(message)):
        if region is None:
            spans.append(None)
            continue
        start, end = region
        first = next((at for at, (_, stop) in enumerate(offsets) if stop > start), len(tokens))
        spans.append(range(first, next((at for at, (begin, _) in enumerate(offsets) if begin >= end), len(tokens))))
    return spans


def _ignore(
    row: dict[str, Any], spans: list[range | None], excluded: list[int], ends: set[int], *, by_markers: bool
) -> list[int]:
    """Return the row's labels without those of the excluded messages, each with the token that ends its turn.

    With markers, a message owns all of the run of labels that contains it, up to the messages before and after it.
    """
    tokens, given = row["input_ids"], row["labels"]
    labels = list(given)
    for number in excluded:
        span = spans[number]
        if span is None:
            continue
        first, end = span.start, _find_turn_end(number, spans, tokens, ends)
        if by_markers:
            first, end = _extend_to_run(number, spans, given, end, tokens, ends)
        labels[first:end] = [IGNORED] * (end - first)
    return labels


def _extend_to_run(
    number: int, spans: list[range | None], given: list[int], turn_end: int, tokens: list[int], ends: set[int]
) -> tuple[int, int]:
    """Return the part of a run of labels that is a message's own; where nothing of it is learned, the message alone."""
    span = spans[number]
    assert span is not None
    first, end = span.start, span.stop
    if given[first : first + 1] in ([], [IGNORED]):
        return first, end
    before = max((_find_turn_end(at, spans, tokens, ends) for at in range(number) if spans[at]), default=0)
    after = _find_next_start(number, spans, len(tokens))
    while first > before and given[first - 1] != IGNORED:
        first -= 1
    if after < len(tokens) and IGNORED not in given[end:after]:
        return first, turn_end  # the next message is in the same run
    while end < after and given[end] != IGNORED:
        end += 1
    return first, end


def _find_turn_end(number: int, spans: list[range | None], tokens: list[int], ends: set[int]) -> int:
    """Return where a message's turn ends: after the first special token between it and the next message."""
    span = spans[number]
    assert span is not None
    limit = _find_next_start(number, spans, len(tokens))
    return next((at + 1 for at in range(span.stop, limit) if tokens[at] in ends), span.stop)


def _find_next_start(number: int, spans: list[range | None], tokens: int) -> int:
    return min((span.start for span in spans[number + 1 :] if span is not None), default=tokens)
