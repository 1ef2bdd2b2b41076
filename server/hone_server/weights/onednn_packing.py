"""Weights that lie in memory as oneDNN computes with them, which does not have to order them anew in every call.

On two cores (AVX-512) the products of SmolLM2-135M take half to three quarters of the time with 1 to 8 rows, and two
thirds to four fifths with 32.
"""

import ctypes
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import torch

from hone_server.hardware import has_bfloat16
from hone_server.weights.fused_linear import JoinedLinear, Joint


def pack(models: Sequence[Any], beside: Any = None) -> None:
    """Packs the weights of models on the CPU, one at a time, in place of those that torch could read.

    For models that do not compute yet, and whose weights nothing but their layers reads any more; `unpack` makes them
    readable in a copy. A weight that several layers or models share, also with the one `beside` them, stays as it is,
    as an output head's that is the embedding's.
    """
    modules = [module for model in models for module in model.modules()]
    all_modules = [*modules, *(beside.modules() if beside is not None else ())]
    uses = Counter(own.data_ptr() for module in all_modules for own in module.parameters(recurse=False))
    joints: defaultdict[Joint, list[torch.nn.Linear]] = defaultdict(list)
    for layer in modules:
        if isinstance(layer, JoinedLinear) and layer.joint is not None:
            joints[layer.joint].append(layer)
        elif (isinstance(layer, JoinedLinear) or type(layer) is torch.nn.Linear) and _can(layer, uses):
            if not isinstance(layer, JoinedLinear):
                layer.__class__ = JoinedLinear
            layer.packed = reordered(layer.weight)
            _empty(layer)
    for joint, layers in joints.items():
        if all(_can(layer, uses) for layer in layers):
            joint.weight = reordered(joint.weight)
            for layer in layers:
                _empty(layer)
    _give_back()


def is_packed(model: Any) -> bool:
    return any(isinstance(module, JoinedLinear) and not module.weight.numel() for module in model.modules())


def unpack(model: Any, copied: Any) -> None:
    """Gives a copy of a packed model, whose layers have no joints, weights that torch can read, of its own."""
    for layer, other in zip(model.modules(), copied.modules(), strict=True):
        if not isinstance(layer, JoinedLinear) or layer.weight.numel():
            continue
        if layer.joint is not None:
            whole = torch.split(layer.joint.weight.to_dense(), layer.joint.sizes)[layer.place].clone()
        else:
            assert layer.packed is not None
            whole = layer.packed.to_dense()
        other.weight, other.packed = torch.nn.Parameter(whole, False), None


def reordered(weight: torch.Tensor) -> torch.Tensor:
    """The same numbers as `product` takes them, opaque to torch."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach(), None)  # type: ignore[no-any-return]


def _can(layer: torch.nn.Linear, uses: Counter[int]) -> bool:
    weight = layer.weight
    takes = weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and has_bfloat16())
    is_whole = weight.numel() > 0 and uses[weight.data_ptr()] == 1
    return takes and is_whole and bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


def _empty(layer: torch.nn.Linear) -> None:
    """What reads the weight all the same fails, and does not compute with something else."""
    layer.weight.data = layer.weight.data.new_empty(0)


def _give_back() -> None:
    """The memory of what was freed goes to the system, where the C library can do that (glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)
