"""LoRA adapters: which layers they change, and who can serve them."""

from typing import Any

import torch
from hone_api.finetunejob import FineTuneJobSpec, LoraOptions
from hone_api.reasons import INVALID_SPEC, HoneError
from peft import LoraConfig

from hone_trainer import arguments


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
