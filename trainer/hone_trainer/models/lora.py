"""LoRA adapters: load their files, add them to a base model, and merge them.

PEFT does not check the fields of a configuration, so a wrong one may raise any exception, anywhere in its code. These
exceptions become failures with a name here.
"""

from pathlib import Path
from typing import Any

import torch
from hone_api.artifacts.adapter_config import ADAPTER_CONFIG, require_adapter_weights
from hone_api.reasons import ADAPTER_MISMATCH, ARTIFACT_CORRUPT, HoneError, Reason
from peft import PeftConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from peft.utils import load_peft_weights
from transformers import PreTrainedModel

from hone_trainer.models.tied_weights import record_untied, untie_adapted
from hone_trainer.runtime.errors import UnclassifiedError, classify_error


def load_files(folder: Path) -> tuple[PeftConfig, dict[str, torch.Tensor]]:
    """Load an adapter's configuration and weights from its folder, never from the hub.

    Raises HoneError ArtifactCorrupt.
    """
    require_adapter_weights(folder)
    place = str(folder.absolute())  # an absolute path, which PEFT can't mistake for a name on the hub
    try:
        config: PeftConfig = PeftConfig.from_pretrained(place)
    except Exception as error:
        raise _make_failure(error, ARTIFACT_CORRUPT, f"{folder / ADAPTER_CONFIG} can't be read") from error
    try:
        weights: dict[str, torch.Tensor] = load_peft_weights(place, "cpu")
    except Exception as error:
        raise _make_failure(error, ARTIFACT_CORRUPT, f"The weights in {folder} can't be read") from error
    if not isinstance(weights, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in weights.values()):
        raise HoneError(ARTIFACT_CORRUPT, f"The weights in {folder} are not named tensors")
    return config, weights


def add_adapter(base: PreTrainedModel, config: PeftConfig, weights: dict[str, torch.Tensor]) -> PeftModel:
    """Put an adapter on `base`. `weights` are named as PEFT saves them.

    Raises HoneError AdapterMismatch when the adapter was made for another model.
    """
    try:
        adapted = get_peft_model(base, config)
        result: Any = set_peft_model_state_dict(adapted, weights)
    except Exception as error:
        raise _make_failure(error, ADAPTER_MISMATCH, f"The adapter does not fit {base.name_or_path}") from error
    left = sorted(result.unexpected_keys)
    lacking = sorted(name for name in result.missing_keys if ".lora_" in name or ".modules_to_save." in name)
    if left or lacking:
        which = f"has {left[0]}, which the model lacks" if left else f"lacks {lacking[0]}, which the model has"
        raise HoneError(ADAPTER_MISMATCH, f"The adapter does not fit {base.name_or_path}: it {which}")
    return adapted


def merge_adapter(adapted: PeftModel, *, safely: bool = True) -> PreTrainedModel:
    """Merge the adapter into its base, in the type of the base. Layers that are tied and adapted are untied.

    `safely` checks for weights that are not finite, which takes the memory of a layer, and then raises HoneError
    ArtifactCorrupt. Raises HoneError AdapterMismatch for kinds that are not merged.
    """
    untie_adapted(adapted)
    try:
        merged: Any = adapted.merge_and_unload(safe_merge=safely)
    except NotImplementedError as error:
        raise HoneError(
            ADAPTER_MISMATCH, f"PEFT can't merge an adapter of this kind: {_describe_error(error)}"
        ) from error
    except Exception as error:  # including ValueError, PEFT's check for NaN and infinity
        raise _make_failure(error, ARTIFACT_CORRUPT, "The adapter can't be merged") from error
    record_untied(merged)
    return merged  # type: ignore[no-any-return]


def _make_failure(error: Exception, reason: Reason, found: str) -> HoneError:
    """Return the failure that an exception means, such as OutOfMemory, else one with this reason."""
    failure = classify_error(error)
    return (
        HoneError(reason, f"{found}: {_describe_error(error)}") if isinstance(failure, UnclassifiedError) else failure
    )


def _describe_error(error: Exception) -> str:
    return f"{type(error).__name__} {' '.join(str(error).split())}".rstrip()
