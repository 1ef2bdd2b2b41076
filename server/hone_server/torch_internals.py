"""The operators of torch that it does not document: oneDNN's weights in packed form. All of Hone's calls are here.

A test compares SCHEMAS with the installed torch.
"""

import torch

SCHEMAS = {
    "_linear_pointwise": "mkldnn::_linear_pointwise(Tensor X, Tensor W, Tensor? B, str attr, Scalar?[] scalars, "
    "str? algorithm) -> Tensor Y",
    "_reorder_linear_weight": "mkldnn::_reorder_linear_weight(Tensor self, int? batch_size=None) -> Tensor Y",
}


def pack_weight(weight: torch.Tensor) -> torch.Tensor:
    """Return the weight (shape [out, in]) in oneDNN's layout, for `multiply_packed`; opaque to torch."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach(), None)  # type: ignore[no-any-return]


def multiply_packed(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Compute torch's linear with a weight of `pack_weight`."""
    return torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")  # type: ignore[no-any-return]
