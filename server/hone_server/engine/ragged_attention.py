"""Compute attention for a batch of requests of different lengths, each over its own keys only.

Continuous batching packs all requests into one row. With SDPA, transformers computes every query against the keys of
all requests and masks those of other requests: with 32 requests this is 32 times the work. Here the requests that
decode one token are computed together, grouped by length so that padding at most doubles the keys, and prompts are
computed one at a time.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention as sdpa
from transformers import AttentionInterface
from transformers.generation.continuous_batching.cache_allocators import FULL_ATTENTION

NAME = "ragged"
# Largest number of keys with padding, as a multiple of the keys without.
MOST_PADDING = 2


@dataclass(frozen=True)
class Span:
    """A request's queries, `first` to `last`, and keys, `start` to `end`, in the batch. The ends are not included."""

    first: int
    last: int
    start: int
    end: int

    @property
    def keys(self) -> int:
        return self.end - self.start


@dataclass(frozen=True)
class Side:
    """A group of requests that decode together.

    rows: the rows of their queries. start: the first of their keys. mask: shape [requests, 1, 1, longest], True where a
    key is not padding.
    """

    rows: torch.Tensor | slice
    start: int
    mask: torch.Tensor


@dataclass(frozen=True)
class Plan:
    """How one step computes its requests: `sides` in groups, `alone` one at a time.

    order: which keys of the batch to read, one after the other; None: all of them, in their order.
    """

    sides: list[Side]
    alone: list[Span]
    order: torch.Tensor | None


def fits(config: Any) -> bool:
    """Return whether every layer of the model attends to all earlier tokens."""
    kinds = getattr(config, "layer_types", None) or []
    return getattr(config, "sliding_window", None) is None and set(kinds) <= {FULL_ATTENTION}


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    *,
    scaling: float | None = None,
    cache: Any,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Compute the attention of one layer, with the signature that transformers calls.

    query: shape [1, heads, tokens, size]; key and value have the number of key-value heads instead. Return shape [1,
    tokens, heads, size]. Raises ValueError for a softcap, which SDPA does not support.
    """
    if kwargs.get("softcap") is not None:
        raise ValueError("the attention of this engine knows no softcap")
    kinds = kwargs["cu_seq_lens_k"]
    plan = _plan(tuple(kwargs["cu_seq_lens_q"].tolist()), tuple(kinds[FULL_ATTENTION].tolist()))
    [read] = kwargs["read_index"]
    has_past = read.numel() > 0
    if has_past and plan.order is not None:
        kwargs["read_index"] = [read[plan.order]]
    key, value = cache.update(key_states=key, value_states=value, layer_idx=module.layer_idx, kwargs=kwargs)
    if not has_past and plan.order is not None:
        key, value = key[:, :, plan.order], value[:, :, plan.order]
    kv_heads = key.shape[1]
    _, heads, tokens, size = query.shape
    # SDPA gets the query heads that share keys as several queries of one head.
    queries = query[0].transpose(0, 1).reshape(tokens, kv_heads, heads // kv_heads, size)
    out = torch.empty_like(queries)
    for side in plan.sides:
        count, longest = side.mask.shape[0], side.mask.shape[-1]
        theirs = slice(side.start, side.start + count * longest)
        keys, values = (
            tensor[0, :, theirs].view(kv_heads, count, longest, size).transpose(0, 1) for tensor in (key, value)
        )
        out[side.rows] = sdpa(queries[side.rows], keys, values, attn_mask=side.mask, scale=scaling)
    for span in plan.alone:
        rows, own = slice(span.first, span.last), slice(span.start, span.end)
        keys, values = key[:, :, own], value[:, :, own]
        if span.last - span.first == 1:
            out[rows] = sdpa(queries[rows], keys, values, scale=scaling)
        else:
            causal = _causal(span.last - span.first, span.keys)
            answer = sdpa(query[:, :, rows], keys, values, **causal, enable_gqa=True, scale=scaling)
            out[rows] = answer[0].transpose(0, 1).reshape(out[rows].shape)
    return out.reshape(1, tokens, heads, size), None


def _causal(queries: int, keys: int) -> dict[str, Any]:
    """Return SDPA's arguments for a causal mask in which the last query attends to all keys."""
    if queries == keys:
        return {"is_causal": True}
    return {"attn_mask": torch.ones(queries, keys, dtype=torch.bool).tril_(keys - queries)}


@lru_cache(maxsize=8)  # all layers of a step ask the same
def _plan(starts_q: tuple[int, ...], starts_k: tuple[int, ...]) -> Plan:
    spans = [Span(*each) for each in zip(starts_q, starts_q[1:], starts_k, starts_k[1:], strict=False)]
    decoding = sorted((span for span in spans if span.last - span.first == 1), key=lambda span: span.keys)
    alone = [span for span in spans if span.last - span.first > 1]
    groups: list[list[Span]] = []
    while decoding:
        longest, total, count = decoding[-1].keys, 0, 0
        for number, span in enumerate(reversed(decoding), 1):
            total += span.keys
            count = number if longest * number <= MOST_PADDING * total else count
        group = sorted(decoding[-count:], key=lambda span: span.first)
        if count > 1:
            groups.append(group)
        else:
            alone += group
        del decoding[-count:]
    if not groups:
        return Plan([], alone, None)
    sides, placed, reads, start = [], [], [], 0
    for group in groups:
        side, read = _side(group, start)
        sides.append(side)
        reads.append(read)
        start += read.numel()
    for span in alone:
        placed.append(Span(span.first, span.last, start, start + span.keys))
        reads.append(torch.arange(span.start, span.end))
        start += span.keys
    return Plan(sides, placed, torch.cat(reads))


def _side(group: list[Span], start: int) -> tuple[Side, torch.Tensor]:
    """Return the group of requests, and the indices of the keys that they read, with padding."""
    first = torch.tensor([span.start for span in group]).unsqueeze(1)
    lengths = torch.tensor([span.keys for span in group]).unsqueeze(1)
    columns = torch.arange(int(lengths.max())).unsqueeze(0)
    mask = columns < lengths
    begin = group[0].first
    rows: torch.Tensor | slice = torch.tensor([span.first for span in group])
    if [span.first for span in group] == list(range(begin, begin + len(group))):
        rows = slice(begin, begin + len(group))
    return Side(rows, start, mask[:, None, None, :]), torch.where(mask, first + columns, first).flatten()


AttentionInterface.register(NAME, attend)
