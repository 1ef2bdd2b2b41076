"""Tied weights, such as an output head that is the input embedding, before and after an adapter is merged.

An adapter on one of two tied layers changes that layer alone. Merged into the tensor that both share, it would change
the other as well, and no error would show it. So the tensor is copied first, and the model's configuration says that
its layers are no longer tied.
"""

from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PreTrainedConfig, PreTrainedModel

Owner = tuple[torch.nn.Module, str]
"""A module, and the name of one of its parameters."""


def untie_adapted(adapted: PeftModel) -> None:
    """Give each layer that has an adapter tensors of its own, so that merging changes no other layer."""
    owners: dict[int, list[Owner]] = {}
    for module in adapted.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append((module, name))
    bases = {id(module.get_base_layer()) for module in adapted.modules() if isinstance(module, BaseTunerLayer)}
    for shared in owners.values():
        if len(shared) < 2 or not any(id(module) in bases for module, _ in shared):
            continue
        for module, name in shared[1:]:
            copied: Any = module._parameters[name]
            module._parameters[name] = torch.nn.Parameter(copied.detach().clone(), copied.requires_grad)


def record_untied(network: PreTrainedModel) -> None:
    """Have the configuration say that layers are not tied when their tensors differ: loading then keeps them apart."""
    tensors = dict(network.named_parameters(remove_duplicate=False))
    tied: dict[str, str] = getattr(network, "all_tied_weights_keys", None) or {}
    still = {
        one: other
        for one, other in tied.items()
        if one not in tensors or other not in tensors or tensors[one] is tensors[other]
    }
    if len(still) == len(tied):
        return
    network.all_tied_weights_keys = still
    for config in _configs(network.config):
        if getattr(config, "tie_word_embeddings", False):
            config.tie_word_embeddings = False


def _configs(config: PreTrainedConfig) -> list[PreTrainedConfig]:
    """A configuration and those in it."""
    inner = [value for value in vars(config).values() if isinstance(value, PreTrainedConfig)]
    return [config, *(found for value in inner for found in _configs(value))]
