"""A short forward pass that shows what a model does with its layers."""

from collections.abc import Sequence
from typing import Any

import torch

SHAPE = torch.Size((1, 3))
"""Rows and tokens."""


def calls_of(model: Any, layers: Sequence[torch.nn.Linear]) -> list[tuple[torch.nn.Linear, torch.Tensor]]:
    """Each call of these layers, in order, with its input. Of the output layer only the last token is asked."""
    calls: list[tuple[torch.nn.Linear, torch.Tensor]] = []
    hooks = [layer.register_forward_pre_hook(lambda own, inputs: calls.append((own, inputs[0]))) for layer in layers]
    with torch.no_grad():
        tokens = torch.zeros(SHAPE, dtype=torch.long, device=model.device)
        model(input_ids=tokens, use_cache=False, logits_to_keep=1)
    for hook in hooks:
        hook.remove()
    return calls
