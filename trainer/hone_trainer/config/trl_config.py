"""SFTConfig made from the spec, once to prepare the data and once to train on what was prepared."""

from typing import Any

from hone_api.reasons import INVALID_SPEC, HoneError
from trl.trainer.sft_config import SFTConfig

ALREADY_PREPARED = {"dataset_kwargs": {"skip_prepare_dataset": True}, "assistant_only_loss": False}
"""Arguments that tell SFTTrainer that rows are tokens and labels."""


def make_sft_config(keywords: dict[str, Any]) -> SFTConfig:
    """SFTConfig, whose own checks become HoneError InvalidSpec."""
    try:
        args = SFTConfig(**keywords)
    except Exception as error:  # some compare, split or import what they are given
        raise HoneError(INVALID_SPEC, f"spec.training is refused by TRL: {' '.join(str(error).split())}") from error
    if args.padding_free and not args.packing and args.max_length is not None:  # SFTTrainer refuses it, with the model
        raise HoneError(
            INVALID_SPEC,
            "spec.training.extra.paddingFree is true without packing, and TRL then cuts no row to maxLength",
            remedy="Set spec.training.packing: true, or remove paddingFree.",
        )
    return args
