"""One preparation: the job, its base model and datasets, and the device that it is prepared for.

`prepare` creates it once the inputs are located, and passes it to all that checks, plans and tokenizes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hone_api.finetunejobs.spec import FineTuneJobSpec
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from hone_trainer.checks import limits
from hone_trainer.config import sft_config
from hone_trainer.config.auto_profile import Choice, TrainingDevice
from hone_trainer.data.dataset import DatasetLocation
from hone_trainer.models import base_model
from hone_trainer.preparation import prompts
from hone_trainer.preparation.prompts import EvalPrompt


@dataclass(frozen=True)
class Preparation:
    """A job to prepare in `root` for training on `device`. `outline` is the base model without its weights."""

    spec: FineTuneJobSpec
    root: Path
    device: TrainingDevice
    base: base_model.BaseModel
    sources: list[DatasetLocation]
    fingerprint: str
    tokenizer: PreTrainedTokenizerBase
    outline: PreTrainedModel

    def make_keywords(self, choices: Sequence[Choice] = ()) -> dict[str, Any]:
        """Return the keywords of the SFTConfig that rows are prepared with."""
        return sft_config.make_sft_keywords(self.spec, self.root, not torch.cuda.is_available(), choices)

    def load_config(self) -> PreTrainedConfig:
        """Load the base model's config. Raises HoneError."""
        return base_model.load_config(self.base, self.spec.model)

    def read_context(self) -> int | None:
        """Return how many tokens the model can read; None: no limit is known. Raises HoneError."""
        found = limits.read_model_limits(self.outline)
        return found.positions if found.is_hard else base_model.read_context_length(self.base, self.spec.model)

    def encode_prompts(self) -> tuple[list[EvalPrompt], list[str]]:
        """Return the prompts of spec.evaluation in tokens, and warnings. Raises HoneError InvalidSpec, ModelInvalid."""
        questions, warnings = prompts.encode_prompts(self.spec.evaluation, self.tokenizer, self.read_context)
        limits.check_prompts([question.tokens for question in questions], self.load_config, self.tokenizer)
        return questions, warnings
