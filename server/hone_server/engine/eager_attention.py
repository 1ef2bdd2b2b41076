"""Compute attention without a fused kernel on the paged cache, for models whose scores are capped.

Used where the model's class does not support SDPA, such as those of Gemma 2 and gpt-oss. It replaces transformers'
function of this name, which ignores the softcap, so that its answers differ from those of the model without paging.
"""

from typing import Any

import torch
from torch.nn.functional import softmax
from transformers import AttentionInterface
from transformers.integrations.eager_paged import repeat_kv

NAME = "paged|eager"


def install() -> None:
    """Make transformers call `attend` instead of its own function."""
    AttentionInterface.register(NAME, attend)


def attend(
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
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if attention_mask is not None:
        scores = scores + attention_mask
    sinks = getattr(module, "sinks", None)  # a score for attending to nothing
    if sinks is not None:
        nothing = sinks.reshape(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
        scores = torch.cat([scores, nothing], dim=-1)
    shares = softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    if sinks is not None:
        shares = shares[..., :-1]
    return torch.matmul(shares, value).transpose(1, 2).contiguous(), shares
