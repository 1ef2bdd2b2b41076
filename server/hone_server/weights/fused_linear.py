"""Fuse linear layers that read the same input, such as q, k and v, or gate and up. Changes a model of transformers.

    before                                     after
    q_proj.weight [out_q, in]                  fused.weight [out_q + out_k + out_v, in]
    k_proj.weight [out_k, in]                  q_proj.weight, k_proj.weight, v_proj.weight: views of its rows
    v_proj.weight [out_v, in]
    q_proj(x), k_proj(x), v_proj(x):           q_proj(x): one product, split into three; keeps the other two
    three products                             k_proj(x), v_proj(x): take their kept outputs

The model's code is not changed: each layer gets the class FusedLinear, by assigning its `__class__`, and a reference to
its group's FusedWeight. layer_trace.py shows which layers read the same input. With one row a product costs little more
than its call: on two cores (AVX-512) an answer to one client comes 7 to 11 % faster, with weights that are not packed.
onednn_packing.py is next.
"""

from collections import Counter
from collections.abc import Container
from typing import Any

import torch
from torch.nn.functional import linear

from hone_server.torch_internals import multiply_packed
from hone_server.weights.layer_trace import trace_linear_inputs


class FusedWeight:
    """The weights of several layers, concatenated by rows: shape [sum of sizes, in]; the layers' weights are views."""

    def __init__(self, layers: list[torch.nn.Linear]) -> None:
        self.sizes = [layer.out_features for layer in layers]
        self.weight = self._fuse([layer.weight for layer in layers])
        self._bias = self._fuse([layer.bias for layer in layers]) if layers[0].bias is not None else None
        self._input: torch.Tensor | None = None
        self._outputs: list[torch.Tensor] = []

    def _fuse(self, parameters: list[torch.Tensor]) -> torch.Tensor:
        fused = torch.cat([parameter.data for parameter in parameters])
        for parameter, view in zip(parameters, torch.split(fused, self.sizes), strict=True):
            parameter.data = view
        return fused

    def compute_output(self, index: int, input: torch.Tensor) -> torch.Tensor:
        """Return the output of the layer at this index. The first call with an input computes that of all layers."""
        if self._input is not input:
            self._input = input
            self._outputs = list(torch.split(multiply(input, self.weight, self._bias), self.sizes, dim=-1))
        output = self._outputs[index]
        if index == len(self.sizes) - 1:
            self._input, self._outputs = None, []
        return output


def multiply(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Compute torch's linear, or oneDNN's for a weight that oneDNN has packed."""
    if weight.is_mkldnn:
        return multiply_packed(input, weight, bias)
    return linear(input, weight, bias)


class FusedLinear(torch.nn.Linear):
    """A linear layer that takes its output from a fused weight, if it has one, and that can use packed weights."""

    fused: FusedWeight | None = None
    index = 0
    # Used instead of the weight, which is empty then. In a group, the fused weight is packed.
    packed_weight: torch.Tensor | None = None

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if self.fused is not None:
            return self.fused.compute_output(self.index, input)
        return multiply(input, self.weight if self.packed_weight is None else self.packed_weight, self.bias)


def fuse_linears(model: Any, shared: Container[int] = ()) -> None:
    """Fuse the layers of a model whose weights will not change.

    A group is left out if one of its weights has its address in `shared`, because a fused weight has memory of its own.
    """
    for group in _find_groups(model):
        if any(layer.weight.data_ptr() in shared for layer in group):
            continue
        fused = FusedWeight(group)
        for index, layer in enumerate(group):
            if not isinstance(layer, FusedLinear):
                layer.__class__ = FusedLinear
            layer.fused, layer.index = fused, index  # type: ignore[assignment]


def _find_groups(model: Any) -> list[list[torch.nn.Linear]]:
    """Return the groups of layers that read the same tensor one after the other, as a trial forward pass shows.

    A layer that is called more than once is in no group.
    """
    calls = trace_linear_inputs(
        model,
        [
            layer
            for layer in model.modules()
            if type(layer) is torch.nn.Linear or (isinstance(layer, FusedLinear) and layer.fused is None)
        ],
    )
    call_counts = Counter(id(layer) for layer, _ in calls)
    groups: list[list[torch.nn.Linear]] = []
    previous_input: torch.Tensor | None = None
    for layer, layer_input in calls:
        if call_counts[id(layer)] > 1:
            previous_input = None
        elif layer_input is previous_input and (layer.bias is None) == (groups[-1][0].bias is None):
            groups[-1].append(layer)
        else:
            groups.append([layer])
            previous_input = layer_input
    return [group for group in groups if len(group) > 1]
