"""Store weights in oneDNN's layout, so that oneDNN does not reorder them in every call. Changes a model of
transformers.

    before                                     after
    layer.weight [out, in], float32/bfloat16   layer.weight: empty; layer.packed_weight: opaque, the same values
    fused.weight [sum of out, in]              fused.weight: opaque; the weights of its layers: empty
    layer(x): oneDNN reorders the weight       layer(x): `multiply_packed` of torch_internals.py
    and multiplies

Packed weights can't be read or changed by torch: `unpack_weights` restores them in a copy, for adapters that need it.
On two cores (AVX-512) the products of SmolLM2-135M take half to three quarters of the time with 1 to 8 rows, and two
thirds to four fifths with 32. fused_linear.py has the layers that use packed weights.
"""

import ctypes
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import torch

from hone_server.hardware import has_bfloat16
from hone_server.torch_internals import pack_weight
from hone_server.weights.fused_linear import FusedLinear, FusedWeight


def prepack_weights(models: Sequence[Any], unpacked_model: Any = None) -> None:
    """Pack the weights of models on the CPU, one at a time, in place of those that torch can read.

    Call it before the models compute, and only if nothing but their layers reads the weights afterwards;
    `unpack_weights` makes them readable in a copy. A weight that several layers or models share stays as it is, such as
    an output head's that is the embedding's. `unpacked_model` is a further model that may share weights and is not
    packed.
    """
    modules = [module for model in models for module in model.modules()]
    all_modules = [*modules, *(unpacked_model.modules() if unpacked_model is not None else ())]
    uses = Counter(own.data_ptr() for module in all_modules for own in module.parameters(recurse=False))
    fused_layers: defaultdict[FusedWeight, list[torch.nn.Linear]] = defaultdict(list)
    for layer in modules:
        if isinstance(layer, FusedLinear) and layer.fused is not None:
            fused_layers[layer.fused].append(layer)
        elif (isinstance(layer, FusedLinear) or type(layer) is torch.nn.Linear) and _can_pack(layer, uses):
            if not isinstance(layer, FusedLinear):
                layer.__class__ = FusedLinear
            layer.packed_weight = pack_weight(layer.weight)
            _clear_weight(layer)
    for fused, layers in fused_layers.items():
        if all(_can_pack(layer, uses) for layer in layers):
            fused.weight = pack_weight(fused.weight)
            for layer in layers:
                _clear_weight(layer)
    _release_memory()


def is_prepacked(model: Any) -> bool:
    return any(isinstance(module, FusedLinear) and not module.weight.numel() for module in model.modules())


def unpack_weights(model: Any, copied: Any) -> None:
    """Give a copy of a packed model weights of its own that torch can read. The copy's layers must not be fused."""
    for layer, own in zip(model.modules(), copied.modules(), strict=True):
        if not isinstance(layer, FusedLinear) or layer.weight.numel():
            continue
        if layer.fused is not None:
            dense = torch.split(layer.fused.weight.to_dense(), layer.fused.sizes)[layer.index].clone()
        else:
            assert layer.packed_weight is not None
            dense = layer.packed_weight.to_dense()
        own.weight, own.packed_weight = torch.nn.Parameter(dense, False), None


def _can_pack(layer: torch.nn.Linear, uses: Counter[int]) -> bool:
    weight = layer.weight
    has_packable_dtype = weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and has_bfloat16())
    is_unshared = weight.numel() > 0 and uses[weight.data_ptr()] == 1
    return has_packable_dtype and is_unshared and bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


def _clear_weight(layer: torch.nn.Linear) -> None:
    """Empty the layer's weight, so that code that still reads it fails instead of computing with a wrong value."""
    layer.weight.data = layer.weight.data.new_empty(0)


def _release_memory() -> None:
    """Return freed memory to the system, if the C library can do this (glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)
