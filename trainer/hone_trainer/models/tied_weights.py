"""Tied weights, such as an output head that is the input embedding, before and after an adapter is merged.

An adapter on one of two tied layers changes only that layer. Merged into the tensor that both share, it would change
the other as well, without an error. So the tensor is copied first, and the model's configuration then declares its
layers as not tied.
"""

from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PreTrainedConfig, PreTrainedModel

# A module, and the name of one of its parameters.
Owner = tuple[torch.nn.Module, str]


def untie_adapted(adapted: PeftModel) -> None:
    """Give each layer that has an adapter its own tensors, so that merging changes no other layer."""
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
    """Declare layers as not tied in the configuration when their tensors differ, so that loading keeps them apart."""
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
    for config in _list_configs(network.config):
        if getattr(config, "tie_word_embeddings", False):
            config.tie_word_embeddings = False


def _list_configs(config: PreTrainedConfig) -> list[PreTrainedConfig]:
    """Return a configuration and those nested in it."""
    inner = [value for value in vars(config).values() if isinstance(value, PreTrainedConfig)]
    return [config, *(found for value in inner for found in _list_configs(value))]
