"""Turn rows into tokens and labels, by SFTTrainer's own code but without a model."""

import copy
from collections.abc import Callable
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl.chat_template_utils import get_training_chat_template, has_generation_markers
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from hone_trainer.data import message_weights
from hone_trainer.data.exact_numbers import RestoringTokenizer


class DatasetTokenizer(SFTTrainer):
    """The part of SFTTrainer that prepares a dataset; the decisions of its `__init__` for that are made here in the
    same way.
    """

    def __init__(self, args: SFTConfig, tokenizer: PreTrainedTokenizerBase, sample: dict[str, Any]) -> None:
        self.sft_config = args
        self.tokenizer = self._tokenizer = tokenizer
        self.chat_template = None
        if args.assistant_only_loss and not has_generation_markers(tokenizer.chat_template):
            self.chat_template = get_training_chat_template(tokenizer)
        is_pair = "prompt" in sample and "completion" in sample
        self.completion_only_loss = is_pair if args.completion_only_loss is None else args.completion_only_loss

    def tokenize_full(self, rows: Dataset) -> Dataset:
        """Return `input_ids` and `labels` of every row at its full length, in the rows' order."""
        args = copy.copy(self.sft_config)
        args.max_length, args.shuffle_dataset = None, False
        restoring: Any = RestoringTokenizer(self._tokenizer)
        tokenized = self._prepare_dataset(rows, restoring, args, False, None, "given")
        return tokenized.select_columns(["input_ids", "labels"])

    def exclude_turns(self, rows: Dataset, whole: Dataset, find_place: Callable[[int], str]) -> Dataset:
        """Set the labels of messages that are not to be learned to IGNORED.

        `find_place` returns the place of a row. Raises HoneError InvalidSpec, DatasetInvalid.
        """
        by_markers = self.sft_config.assistant_only_loss
        return message_weights.exclude_turns(
            rows, whole, self.tokenizer, self.chat_template, find_place, by_markers=by_markers
        )

    def truncate(self, whole: Dataset, packing: bool) -> Dataset:
        """Return the rows to train on: cut to max_length, or packed into rows of it; drop rows without a label."""
        return self._prepare_dataset(whole, self._tokenizer, self.sft_config, packing, None, "cut")
