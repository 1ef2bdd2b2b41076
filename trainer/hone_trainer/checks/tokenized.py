"""All checks of a tokenized split, in one place.

`check_split` refuses rows before planning; `find_warnings` runs all other checks afterwards, since some depend on where
rows are cut and packed. `preparation.prepare` calls both and keeps the warnings in prepared.json.
"""

from dataclasses import dataclass

from datasets import Dataset
from hone_api.finetunejobs.training import TrainingArguments
from hone_api.reasons import DATASET_INVALID, HoneError
from transformers import PreTrainedTokenizerBase
from trl.chat_template_utils import is_chat_template_stop_token_trained

from hone_trainer.checks import conversations, limits, markers, reasoning, renderings, special_tokens
from hone_trainer.checks.findings import make_findings, write_warnings
from hone_trainer.checks.limits import ModelLimits
from hone_trainer.checks.row_places import find_places
from hone_trainer.data import chat_templates
from hone_trainer.data.dataset import LoadedDataset
from hone_trainer.data.statistics import TokenCounts, Truncation, find_shared_rows
from hone_trainer.data.tokenization import DatasetTokenizer


@dataclass(frozen=True)
class TokenizedSplit:
    """Rows of the dataset before and after tokenizing; `purpose` is a phrase such as "to train on"."""

    given: Dataset
    whole: Dataset
    counts: TokenCounts
    purpose: str


@dataclass(frozen=True)
class SplitChecker:
    """Checks splits of `data`; `base_stops` are the tokens at which the base model's generation stops."""

    data: LoadedDataset
    tokenizer: PreTrainedTokenizerBase
    training: TrainingArguments
    limits: ModelLimits
    base_stops: set[int]

    def check_split(self, split: TokenizedSplit) -> None:
        """Raise HoneError DatasetInvalid or ModelInvalid for rows without a token, or with one the model lacks."""
        if not split.counts.lengths.max():
            where = find_places(self.data, split.given, [0])[0]
            raise HoneError(
                DATASET_INVALID,
                f"None of {len(split.given)} rows {split.purpose} gives a token (first: {where}): the chat template "
                "renders nothing",
                remedy=chat_templates.CORRECT_THE_TEMPLATE,
            )
        limits.check_ids(split.whole, self.limits, self.data, split.given, self.tokenizer, split.purpose)

    def find_warnings(self, split: TokenizedSplit, tokenizing: DatasetTokenizer, packing: bool) -> list[str]:
        """Return what the user should know of these rows. Raises HoneError InvalidSpec for rows that are too long."""
        given, args, template = split.given, tokenizing.sft_config, tokenizing.chat_template
        turns = conversations.survey_conversations(given)
        sample = turns.sampler.choose()
        findings = [
            *limits.check_lengths(
                split.counts.lengths, self.limits, args, Truncation.from_args(args, packing), packing
            ),
            *conversations.find_empty_rows(turns),
            *renderings.find_unaligned(given, split.whole, sample, self.tokenizer, template),
        ]
        if self.data.conversational:
            text = template or chat_templates.find_template(self.tokenizer)
            findings += conversations.find_unknown_roles(turns, text, args.assistant_only_loss)
            findings += renderings.find_dropped_text(given, sample, self.tokenizer, template)
            findings += reasoning.find_dropped_reasoning(given, sample, self.tokenizer, template, text)
        if args.assistant_only_loss:
            findings += markers.find_mislabelled(given, split.whole, sample, self.tokenizer, template)
        stops = self.base_stops | {self.tokenizer.get_vocab()[str(self._get_end_token)]}
        ends = special_tokens.read_ends(split.whole, self.tokenizer)
        missing = special_tokens.find_missing_ends(ends, turns.ends_with_answer(), stops, self.tokenizer)
        findings += missing
        findings += special_tokens.find_doubled(ends, ~turns.ends_with_nothing(), stops, self.tokenizer)
        warnings = write_warnings(findings, self.data, given, split.purpose)
        if args.assistant_only_loss and not missing and not self._teaches_end(template):
            warnings.append(
                "the chat template leaves the token that ends an assistant's turn out of the loss when another turn "
                "follows: the model may not learn to stop. Put it inside {% generation %} in spec.dataset.chatTemplate"
            )
        return warnings

    def find_leaks(self, evaluation: TokenizedSplit, train: TokenCounts) -> list[str]:
        """Return a warning when rows to evaluate on are among those to train on, of any dataset."""
        text = "are rows to train on as well, so that the evaluation loss shows what was memorized: leave repeats out"
        shared = find_shared_rows(evaluation.counts, train)
        return write_warnings(make_findings(shared, text), self.data, evaluation.given, evaluation.purpose)

    @property
    def _get_end_token(self) -> str | None:
        return self.training.eos_token or self.tokenizer.eos_token

    def _teaches_end(self, template: str | None) -> bool:
        try:
            return bool(is_chat_template_stop_token_trained(self.tokenizer, chat_template=template))
        except Exception:  # the template does not render TRL's conversation, and did render the rows
            return True
