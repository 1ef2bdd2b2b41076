"""Which parameters an adapter changes, decided from the base model without its weights.

Input is spec.lora and the model on the meta device, or the loaded one; output is PEFT's LoraConfig. PEFT's all-linear
finds torch's linear layers, and on some models their fused experts. Here all-linear means every linear layer on every
model: experts that are fused into one parameter, routers, and layers that PEFT would not reach are given to PEFT as
`target_parameters`. `find_left_out` reports what stays out. Next in the flow: memory/architecture.py, pipeline.py.
"""

import inspect
import re
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import torch
from hone_api.finetunejobs.spec import FineTuneJobSpec, LoraOptions
from hone_api.reasons import INVALID_SPEC, HoneError
from peft import LoraConfig
from peft.tuners.lora.layer import LoraLayer
from peft.tuners.tuners_utils import _check_lora_target_modules_mamba
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from transformers.pytorch_utils import Conv1D

ALL_LINEAR = "all-linear"


@dataclass(frozen=True)
class AllLinearTargets:
    """The meaning of all-linear on a model, in PEFT's fields. `parameters` include those that PEFT finds itself."""

    parameters: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()


def make_lora_config(spec: FineTuneJobSpec, revision: str | None, network: torch.nn.Module) -> LoraConfig | None:
    """Return PEFT's configuration; None for method full. Raises HoneError InvalidSpec as check_targets does."""
    if spec.method == "full":
        return None
    lora = spec.lora or LoraOptions()
    check_targets(lora, network)
    config = LoraConfig(**lora.model_dump(), task_type="CAUSAL_LM", revision=revision)
    if lora.target_modules == ALL_LINEAR:
        extent = find_extent(network)
        config.target_parameters = list(extent.added) or None
        config.exclude_modules = list(extent.excluded) or None
    return config


def check_targets(lora: LoraOptions, network: torch.nn.Module) -> None:
    """Raise HoneError InvalidSpec when a target can't be adapted, even where PEFT skips it without an error."""
    if lora.target_modules == ALL_LINEAR:
        _check_options(lora, network)
        return
    modules = dict(network.named_modules())
    head = cast(Any, network).get_output_embeddings()
    for index, target in enumerate(lora.target_modules):
        found = {name: module for name, module in modules.items() if name == target or name.endswith(f".{target}")}
        named = list(found.values())
        if not named:
            problem = "the model has no layer of that name"
        elif any(list(module.children()) for module in named):
            problem = f"that is a {type(named[0]).__name__}, which holds layers and is none"
        elif head is not None and any(module is head for module in named):
            problem = "that is the output head, which TRL's loss reads without an adapter"
        elif not all(_is_linear(module) or isinstance(module, torch.nn.Embedding) for module in named):
            problem = f"that is a {type(named[0]).__name__}, which is no linear layer"
        elif any(_is_bypassed(network, name) for name in found):
            problem = "the model reads its weights without calling it, so that an adapter would not be trained"
        else:
            continue
        raise HoneError(
            INVALID_SPEC,
            f"spec.lora.targetModules[{index}] is {target!r}, and {problem}: its linear layers are "
            + ", ".join(list_linear_layers(network)),
            remedy="Name some of those, or set targetModules: all-linear.",
        )


def list_linear_layers(network: Any) -> list[str]:
    """Return the last part of the names of a model's linear layers that can be named as targets."""
    return sorted({name.rpartition(".")[2] for name, _ in _find_linear(network) if not _is_bypassed(network, name)})


def find_extent(network: Any) -> AllLinearTargets:
    """Return the meaning of all-linear on a model."""
    config = LoraConfig(target_modules=ALL_LINEAR, task_type="CAUSAL_LM")
    convert_peft_config_for_transformers(config, network, None)
    found = set(config.target_parameters or ())
    modules = config.target_modules
    excluded = [name for name, _ in _find_linear(network) if _is_bypassed(network, name)]
    needed = []
    for name, module in network.named_modules():
        needed += [f"{_shorten_name(name)}.{parameter}" for parameter in _find_fused(name, module, network)]
        if isinstance(module, torch.nn.Linear) and not _is_linear(module):
            needed.append(f"{_shorten_name(name)}.weight")
            excluded.append(name)
    if modules != ALL_LINEAR:  # PEFT has mistaken the names of some layers for those of experts
        named = set(modules or ())
        needed += [
            f"{_shorten_name(name, 2)}.weight"
            for name, _ in _find_linear(network)
            if name.rpartition(".")[2] not in named
        ]
    added = {one for one in needed if not any(one == target or one.endswith(f".{target}") for target in found)}
    return AllLinearTargets(tuple(sorted(found | added)), tuple(sorted(added)), tuple(sorted(excluded)))


def find_left_out(network: Any) -> list[str]:
    """Return the linear layers without an adapter in a model whose others have one, by the end of their names."""
    wrapped = [module for module in network.modules() if isinstance(module, LoraLayer)]
    inside = {id(part) for module in wrapped for part in cast(torch.nn.Module, module).modules()}
    names = {_shorten_name(name) for name, module in _find_linear(network) if id(module) not in inside}
    for name, module in network.named_modules():
        names |= {
            f"{_shorten_name(name)}.{one}" for one in _find_fused(name, module, network) if id(module) not in inside
        }
    return sorted(names)


def _check_options(lora: LoraOptions, network: torch.nn.Module) -> None:
    """Raise HoneError InvalidSpec for options that PEFT does not support for parameters."""
    options = [("useDora", "true", lora.use_dora), ("loraDropout", lora.lora_dropout, lora.lora_dropout > 0)]
    wrong = [(name, value) for name, value, is_set in options if is_set]
    parameters = find_extent(network).parameters if wrong else ()
    if not parameters:
        return
    name, value = wrong[0]
    raise HoneError(
        INVALID_SPEC,
        f"spec.lora.{name} is {value}, and targetModules all-linear includes {', '.join(parameters)}, which PEFT "
        f"adapts as parameters, without {name}",
        remedy=f"Leave {name} out, or set targetModules to layers among {', '.join(list_linear_layers(network))}.",
    )


def _find_linear(network: Any) -> Iterator[tuple[str, Any]]:
    """Yield the linear layers with their names, without the output head."""
    head = network.get_output_embeddings()
    for name, module in network.named_modules():
        if _is_linear(module) and module is not head:
            yield name, module


def _is_linear(module: torch.nn.Module) -> bool:
    """Return whether PEFT's adapters for linear layers fit a module."""
    return isinstance(module, Conv1D) or (isinstance(module, torch.nn.Linear) and _returns_product(module))


def _returns_product(module: torch.nn.Linear) -> bool:
    """Return whether a layer returns one tensor. A model's own class, such as a router, may return more."""
    kind = type(module)
    if kind.forward is torch.nn.Linear.forward or not kind.__module__.startswith("transformers.models."):
        return True
    weight = module.weight
    try:
        with torch.no_grad():
            found: Any = module(torch.zeros(2, module.in_features, device=weight.device, dtype=weight.dtype))
    except Exception:
        return False
    return isinstance(found, torch.Tensor)


def _find_fused(name: str, module: torch.nn.Module, network: Any) -> list[str]:
    """Return the parameters of a module that are fused linear layers of experts, or the router next to them."""
    if hasattr(module, "is_transposed") and hasattr(module, "num_experts"):
        return [own for own, parameter in module.named_parameters(recurse=False) if parameter.dim() == 3]
    weight = getattr(module, "weight", None)
    siblings = network.get_submodule(name.rpartition(".")[0]).children() if name else ()
    is_beside = any(hasattr(one, "is_transposed") and hasattr(one, "num_experts") for one in siblings)
    is_router = is_beside and not isinstance(module, torch.nn.Linear) and isinstance(weight, torch.nn.Parameter)
    return ["weight"] if is_router and weight is not None and weight.dim() == 2 else []


def _is_bypassed(network: Any, name: str) -> bool:
    """Return whether a layer's weights are used without calling the layer, so that an adapter on it is not trained."""
    parent, _, leaf = name.rpartition(".")
    try:
        _check_lora_target_modules_mamba(LoraConfig(), network, leaf)
    except ValueError:
        return True
    kind: Any = type(network.get_submodule(parent))
    source = _read_source(kind)
    return bool(re.search(rf"self\.{re.escape(leaf)}\.weight\b(?!\.(dtype|device|shape|size)|\[)", source))


@cache
def _read_source(kind: Hashable) -> str:
    try:
        return inspect.getsource(cast(type, kind))
    except (OSError, TypeError):
        return ""


def _shorten_name(name: str, parts: int = 1) -> str:
    return ".".join(name.split(".")[-parts:])
