"""What would otherwise fail late, or not at all and train something else: checked before and after tokenizing."""

from collections.abc import Iterable
from typing import Any

import jinja2
import pyarrow.compute as pc
from datasets import Dataset
from hone_api.reasons import (
    ALL_ROWS_TRUNCATED,
    CHAT_TEMPLATE_MISSING,
    DATASET_INVALID,
    INVALID_SPEC,
    HoneError,
)
from hone_api.training import TrainingArguments
from transformers import PreTrainedTokenizerBase
from trl.chat_template_utils import get_training_chat_template, has_generation_markers
from trl.trainer.sft_trainer import SFTTrainer

from hone_trainer.data import Data


def before(data: Data, tokenizer: PreTrainedTokenizerBase, training: TrainingArguments) -> None:
    """Check that the tokenizer can do what format and arguments need.

    Raises HoneError ChatTemplateMissing, or InvalidSpec naming the field.
    """
    _tokens(tokenizer, training)
    if data.conversational and not tokenizer.chat_template:
        raise HoneError(
            CHAT_TEMPLATE_MISSING, "The dataset's rows are messages, and the tokenizer has no chat template"
        )
    if training.completion_only_loss and data.format != "prompt-completion":
        raise HoneError(
            INVALID_SPEC,
            f"spec.training.completionOnlyLoss is true, and the rows are {data.format}, which has no completion",
            remedy="Remove it"
            + (", or set assistantOnlyLoss." if data.conversational else ", or give prompt and completion."),
        )
    if training.assistant_only_loss:
        _assistant_only(data, tokenizer)


def after(trainer: SFTTrainer, data: Data) -> list[str]:
    """Warnings about rows that maxLength dropped or cut, once the trainer has tokenized them.

    Raises HoneError AllRowsTruncated when none is left.
    """
    args: Any = trainer.args
    found = _fit(trainer.train_dataset, data.train, args.max_length, args.packing, "to train on")
    if data.evaluation:
        packed = args.packing if args.eval_packing is None else args.eval_packing
        found += _fit(trainer.eval_dataset, data.evaluation, args.max_length, packed, "to evaluate on")
    return found


def _fit(tokenized: Any, given: Dataset, limit: int | None, packed: bool, purpose: str) -> list[str]:
    if not len(tokenized):
        raise HoneError(
            ALL_ROWS_TRUNCATED,
            f"spec.training.maxLength is {limit}, which leaves no token to learn in any of {len(given)} rows {purpose}",
        )
    if packed or not limit:
        return []
    found = []
    if len(tokenized) < len(given):
        dropped = len(given) - len(tokenized)
        found.append(
            f"{dropped} of {len(given)} rows {purpose} are left out: their prompt alone fills maxLength {limit}"
        )
    lengths = pc.list_value_length(tokenized.data.column("input_ids"))
    full = pc.sum(pc.greater_equal(lengths, limit)).as_py()
    if full:
        found.append(f"{full} of {len(given)} rows {purpose} reach maxLength {limit}: what is longer is cut off")
    return found


def refused_by_template(
    error: jinja2.TemplateError, rows: Iterable[dict[str, Any]], tokenizer: PreTrainedTokenizerBase
) -> HoneError:
    """The failure that names the row which made the chat template raise `error`."""
    for number, row in enumerate(rows, start=1):
        messages = row["messages"] if "messages" in row else row["prompt"] + row["completion"]
        try:
            tokenizer.apply_chat_template(messages, tokenize=False)
        except jinja2.TemplateError as found:
            return HoneError(DATASET_INVALID, f"The model's chat template refuses row {number}: {found}")
    return HoneError(DATASET_INVALID, f"The model's chat template refuses a row: {error}")


def _tokens(tokenizer: PreTrainedTokenizerBase, training: TrainingArguments) -> None:
    vocabulary = tokenizer.get_vocab()
    for field, token in (("eosToken", training.eos_token), ("padToken", training.pad_token)):
        if token is not None and token not in vocabulary:
            raise HoneError(
                INVALID_SPEC,
                f"spec.training.{field} is {token!r}, which is not in the tokenizer's vocabulary",
                remedy="Name a token that the tokenizer has, or remove the field.",
            )
    if not (training.eos_token or tokenizer.eos_token):
        raise HoneError(
            INVALID_SPEC,
            "spec.training.eosToken is left out, and the tokenizer has no end-of-sequence token",
            remedy="Name the token that ends a text.",
        )


def _assistant_only(data: Data, tokenizer: PreTrainedTokenizerBase) -> None:
    if not data.conversational:
        raise HoneError(
            INVALID_SPEC,
            f"spec.training.assistantOnlyLoss is true, and the rows are {data.format} without messages",
            remedy="Remove it, or give messages.",
        )
    if has_generation_markers(tokenizer.chat_template):
        return
    try:
        get_training_chat_template(tokenizer)
    except ValueError:
        raise HoneError(
            INVALID_SPEC,
            "spec.training.assistantOnlyLoss is true, and the model's chat template has no {% generation %} markers",
            remedy="Remove it, or use a model whose template marks the assistant's turns.",
        ) from None
