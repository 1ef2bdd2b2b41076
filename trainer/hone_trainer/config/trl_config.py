"""SFTConfig from keyword arguments, once to prepare the data and once to train on the prepared data."""

from typing import Any

from hone_api.reasons import INVALID_SPEC, HoneError
from trl.trainer.sft_config import SFTConfig

# Arguments that make SFTTrainer accept rows that are already tokens and labels.
ALREADY_PREPARED = {"dataset_kwargs": {"skip_prepare_dataset": True}, "assistant_only_loss": False}


def make_sft_config(keywords: dict[str, Any]) -> SFTConfig:
    """Return SFTConfig; turn the failures of its own checks into HoneError InvalidSpec."""
    try:
        args = SFTConfig(**keywords)
    except Exception as error:  # some of its checks compare, split or import what they are given
        raise HoneError(INVALID_SPEC, f"spec.training is refused by TRL: {' '.join(str(error).split())}") from error
    # SFTTrainer refuses it only with the model
    if args.padding_free and not args.packing and args.max_length is not None:
        raise HoneError(
            INVALID_SPEC,
            "spec.training.extra.paddingFree is true without packing, and TRL then cuts no row to maxLength",
            remedy="Set spec.training.packing: true, or remove paddingFree.",
        )
    return args
