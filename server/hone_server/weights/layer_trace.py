"""Run a short forward pass that shows how a model calls its layers.

In: a model and some of its linear layers. Out: their calls in order, each with its input, of shape [1, 3, in] for a
layer that gets every token. Two layers read the same input if they get the same tensor object. fused_linear.py finds
its groups with it, and batched_lora.py the layers that can have adapters.
"""

from collections.abc import Sequence
from typing import Any

import torch

# Rows and tokens.
TRACE_SHAPE = torch.Size((1, 3))


def trace_linear_inputs(model: Any, layers: Sequence[torch.nn.Linear]) -> list[tuple[torch.nn.Linear, torch.Tensor]]:
    """Return each call of these layers, in order, with its input. The output layer computes only the last token."""
    calls: list[tuple[torch.nn.Linear, torch.Tensor]] = []
    hooks = [layer.register_forward_pre_hook(lambda own, inputs: calls.append((own, inputs[0]))) for layer in layers]
    with torch.no_grad():
        tokens = torch.zeros(TRACE_SHAPE, dtype=torch.long, device=model.device)
        model(input_ids=tokens, use_cache=False, logits_to_keep=1)
    for hook in hooks:
        hook.remove()
    return calls
