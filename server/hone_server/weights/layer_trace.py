"""Run a short forward pass that shows how a model calls its layers."""

from collections.abc import Sequence
from typing import Any

import torch

# Rows and tokens.
SHAPE = torch.Size((1, 3))


def calls_of(model: Any, layers: Sequence[torch.nn.Linear]) -> list[tuple[torch.nn.Linear, torch.Tensor]]:
    """Return each call of these layers, in order, with its input. The output layer computes only the last token."""
    calls: list[tuple[torch.nn.Linear, torch.Tensor]] = []
    hooks = [layer.register_forward_pre_hook(lambda own, inputs: calls.append((own, inputs[0]))) for layer in layers]
    with torch.no_grad():
        tokens = torch.zeros(SHAPE, dtype=torch.long, device=model.device)
        model(input_ids=tokens, use_cache=False, logits_to_keep=1)
    for hook in hooks:
        hook.remove()
    return calls
