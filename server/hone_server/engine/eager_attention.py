"""Compute attention without a fused kernel on the paged cache, for models whose scores are capped.

Used where the model's class does not support SDPA, such as those of Gemma 2 and gpt-oss. It replaces transformers'
function of this name, which ignores the softcap, so that its answers differ from those of the model without paging.
"""

from typing import Any

import torch
from torch.nn.functional import softmax
from transformers import AttentionInterface

from hone_server.transformers_internals import repeat_kv

KERNEL_NAME = "paged|eager"


def register_kernel() -> None:
    """Make transformers call `compute_attention` instead of its own function."""
    AttentionInterface.register(KERNEL_NAME, compute_attention)


def compute_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    *,
    cache: Any,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the attention of one layer, with the signature that transformers calls.

    query: shape [1, heads, tokens, size]; key and value have the number of key-value heads instead. Return the output
    of shape [1, tokens, heads, size], and the scores after the softmax.
    """
    key, value = cache.update(key_states=key, value_states=value, layer_idx=module.layer_idx, kwargs=kwargs)
    query_groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, query_groups), repeat_kv(value, query_groups)
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if attention_mask is not None:
        scores = scores + attention_mask
    sinks = getattr(module, "sinks", None)  # a score for attending to nothing
    if sinks is not None:
        sink_scores = sinks.reshape(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
        scores = torch.cat([scores, sink_scores], dim=-1)
    probabilities = softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    if sinks is not None:
        probabilities = probabilities[..., :-1]
    return torch.matmul(probabilities, value).transpose(1, 2).contiguous(), probabilities
