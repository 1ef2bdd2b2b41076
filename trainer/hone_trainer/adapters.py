"""LoRA adapters: which layers they change, and their sum with a base model."""

from typing import Any

import torch
from hone_api.finetunejob import FineTuneJobSpec, LoraOptions
from hone_api.reasons import ADAPTER_MISMATCH, ARTIFACT_CORRUPT, INVALID_SPEC, HoneError
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from transformers import PreTrainedModel

from hone_trainer import arguments
from hone_trainer.tying import record_untied, untie_adapted


def lora_config(spec: FineTuneJobSpec, revision: str | None, network: torch.nn.Module) -> LoraConfig | None:
    """PEFT's configuration; None for method full. Raises HoneError InvalidSpec as check_targets does."""
    if spec.method == "full":
        return None
    check_targets(spec.lora or LoraOptions(), network)
    return LoraConfig(**arguments.lora_config(spec, revision))


def check_targets(lora: LoraOptions, network: torch.nn.Module) -> None:
    """Raise HoneError InvalidSpec when a target names no layer, which PEFT passes over as long as another one does."""
    if lora.target_modules == "all-linear":
        return
    modules = dict(network.named_modules())
    for index, target in enumerate(lora.target_modules):
        named = [module for name, module in modules.items() if name == target or name.endswith(f".{target}")]
        if not named:
            problem = "the model has no layer of that name"
        elif any(list(module.children()) for module in named):
            problem = f"that is a {type(named[0]).__name__}, which holds layers and is none"
        else:
            continue
        raise HoneError(
            INVALID_SPEC,
            f"spec.lora.targetModules[{index}] is {target!r}, and {problem}: its linear layers are "
            + ", ".join(linear_layers(network)),
            remedy="Name some of those, or set targetModules: all-linear.",
        )


def linear_layers(network: Any) -> list[str]:
    """The last part of the names of a model's linear layers, without the output head."""
    head = network.get_output_embeddings()
    return sorted(
        {
            name.rpartition(".")[2]
            for name, module in network.named_modules()
            if isinstance(module, torch.nn.Linear) and module is not head
        }
    )


def adapt(base: PreTrainedModel, config: PeftConfig, weights: dict[str, torch.Tensor]) -> PeftModel:
    """Put an adapter on `base`. `weights` are named as PEFT saves them.

    Raises HoneError AdapterMismatch when the adapter was made for another model.
    """
    try:
        adapted = get_peft_model(base, config)
        result: Any = set_peft_model_state_dict(adapted, weights)
    except (ValueError, RuntimeError, KeyError) as error:
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
    ArtifactCorrupt.
    """
    untie_adapted(adapted)
    try:
        merged: Any = adapted.merge_and_unload(safe_merge=safely)
    except ValueError as error:  # PEFT's check for NaN and infinity
        raise HoneError(ARTIFACT_CORRUPT, f"The adapter can't be merged: {_line(error)}") from error
    record_untied(merged)
    return merged  # type: ignore[no-any-return]


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
