"""LoRA adapters: their sum with a base model."""

import re
from typing import Any

import torch
from hone_api.reasons import ADAPTER_MISMATCH, ARTIFACT_CORRUPT, HoneError
from peft import PeftConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from transformers import PreTrainedModel

from hone_trainer.tying import record_untied, untie_adapted

# What PEFT raises for a configuration that is wrong, as its fields are used unchecked; names of layers are patterns.
PEFT_ERRORS = (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RuntimeError, ImportError, re.error)


def adapt(base: PreTrainedModel, config: PeftConfig, weights: dict[str, torch.Tensor]) -> PeftModel:
    """Put an adapter on `base`. `weights` are named as PEFT saves them.

    Raises HoneError AdapterMismatch when the adapter was made for another model.
    """
    try:
        adapted = get_peft_model(base, config)
        result: Any = set_peft_model_state_dict(adapted, weights)
    except PEFT_ERRORS as error:
        raise HoneError(ADAPTER_MISMATCH, f"The adapter does not fit {base.name_or_path}: {_line(error)}") from error
    left = sorted(result.unexpected_keys)
    lacking = sorted(name for name in result.missing_keys if ".lora_" in name or ".modules_to_save." in name)
    if left or lacking:
        which = f"has {left[0]}, which the model lacks" if left else f"lacks {lacking[0]}, which the model has"
        raise HoneError(ADAPTER_MISMATCH, f"The adapter does not fit {base.name_or_path}: it {which}")
    return adapted


def merge(adapted: PeftModel, *, safely: bool = True) -> PreTrainedModel:
    """Merge the adapter into its base, in the type that the base has. Layers that are tied and adapted are untied.

    `safely` looks for weights that are not finite, which takes the memory of a layer: then raises HoneError
    ArtifactCorrupt. Raises HoneError AdapterMismatch for kinds that are not merged.
    """
    untie_adapted(adapted)
    try:
        merged: Any = adapted.merge_and_unload(safe_merge=safely)
    except NotImplementedError as error:
        raise HoneError(ADAPTER_MISMATCH, f"PEFT can't merge an adapter of this kind: {_line(error)}") from error
    except ValueError as error:  # PEFT's check for NaN and infinity
        raise HoneError(ARTIFACT_CORRUPT, f"The adapter can't be merged: {_line(error)}") from error
    record_untied(merged)
    return merged  # type: ignore[no-any-return]


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
