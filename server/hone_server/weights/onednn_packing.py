"""Store weights in oneDNN's layout, so that oneDNN does not reorder them in every call.

Before: layer.weight [out, in]; oneDNN reorders it in each product.
After: layer.packed (opaque to torch), layer.weight empty.

On two cores (AVX-512) the products of SmolLM2-135M take half to three quarters of the time with 1 to 8 rows, and two
thirds to four fifths with 32. fused_linear.py has the layers that use packed weights.
"""

import ctypes
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import torch

from hone_server.hardware import has_bfloat16
from hone_server.weights.fused_linear import JoinedLinear, Joint


def pack(models: Sequence[Any], beside: Any = None) -> None:
    """Pack the weights of models on the CPU, one at a time, in place of those that torch can read.

    Call it before the models compute, and only if nothing but their layers reads the weights afterwards; `unpack` makes
    them readable in a copy. A weight that several layers or models share stays as it is, such as an output head's that
    is the embedding's. `beside` is a further model that may share weights and is not packed.
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
    """Give a copy of a packed model weights of its own that torch can read. The copy's layers must have no joints."""
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
    """Return the weight in oneDNN's layout, as `product` takes it; opaque to torch."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach(), None)  # type: ignore[no-any-return]


def _can(layer: torch.nn.Linear, uses: Counter[int]) -> bool:
    weight = layer.weight
    takes = weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and has_bfloat16())
    is_whole = weight.numel() > 0 and uses[weight.data_ptr()] == 1
    return takes and is_whole and bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


def _empty(layer: torch.nn.Linear) -> None:
    """Empty the layer's weight, so that code that still reads it fails instead of computing with a wrong value."""
    layer.weight.data = layer.weight.data.new_empty(0)


def _give_back() -> None:
    """Return freed memory to the system, if the C library can do this (glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)
