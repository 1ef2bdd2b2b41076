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

from hone_server.transformers_internals import FULL_ATTENTION

KERNEL_NAME = "ragged"
# Largest number of keys with padding, as a multiple of the keys without.
MAX_PADDING_RATIO = 2


@dataclass(frozen=True)
class SequenceSpan:
    """The places of a request's queries and keys in the batch; the ends are not included."""

    query_start: int
    query_end: int
    key_start: int
    key_end: int

    @property
    def key_count(self) -> int:
        return self.key_end - self.key_start


@dataclass(frozen=True)
class DecodeGroup:
    """A group of requests that decode together.

    query_rows: the rows of their queries. key_start: the first of their keys. key_mask: shape [requests, 1, 1,
    longest], True where a key is not padding.
    """

    query_rows: torch.Tensor | slice
    key_start: int
    key_mask: torch.Tensor


@dataclass(frozen=True)
class AttentionPlan:
    """How one step computes its requests: `decode_groups` in groups, `singles` one at a time.

    key_order: which keys of the batch to read, one after the other; None: all of them, in their order.
    """

    decode_groups: list[DecodeGroup]
    singles: list[SequenceSpan]
    key_order: torch.Tensor | None


def supports_model(config: Any) -> bool:
    """Return whether every layer of the model attends to all earlier tokens."""
    kinds = getattr(config, "layer_types", None) or []
    return getattr(config, "sliding_window", None) is None and set(kinds) <= {FULL_ATTENTION}


def compute_attention(
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
    key_starts = kwargs["cu_seq_lens_k"]
    plan = _plan_attention(tuple(kwargs["cu_seq_lens_q"].tolist()), tuple(key_starts[FULL_ATTENTION].tolist()))
    [read_index] = kwargs["read_index"]
    has_past = read_index.numel() > 0
    if has_past and plan.key_order is not None:
        kwargs["read_index"] = [read_index[plan.key_order]]
    key, value = cache.update(key_states=key, value_states=value, layer_idx=module.layer_idx, kwargs=kwargs)
    if not has_past and plan.key_order is not None:
        key, value = key[:, :, plan.key_order], value[:, :, plan.key_order]
    kv_heads = key.shape[1]
    _, heads, tokens, size = query.shape
    # SDPA gets the query heads that share keys as several queries of one head.
    queries = query[0].transpose(0, 1).reshape(tokens, kv_heads, heads // kv_heads, size)
    out = torch.empty_like(queries)
    for group in plan.decode_groups:
        count, longest = group.key_mask.shape[0], group.key_mask.shape[-1]
        group_keys = slice(group.key_start, group.key_start + count * longest)
        keys, values = (
            tensor[0, :, group_keys].view(kv_heads, count, longest, size).transpose(0, 1) for tensor in (key, value)
        )
        out[group.query_rows] = sdpa(queries[group.query_rows], keys, values, attn_mask=group.key_mask, scale=scaling)
    for span in plan.singles:
        rows, own = slice(span.query_start, span.query_end), slice(span.key_start, span.key_end)
        keys, values = key[:, :, own], value[:, :, own]
        if span.query_end - span.query_start == 1:
            out[rows] = sdpa(queries[rows], keys, values, scale=scaling)
        else:
            causal = _make_causal_mask(span.query_end - span.query_start, span.key_count)
            output = sdpa(query[:, :, rows], keys, values, **causal, enable_gqa=True, scale=scaling)
            out[rows] = output[0].transpose(0, 1).reshape(out[rows].shape)
    return out.reshape(1, tokens, heads, size), None


def _make_causal_mask(queries: int, keys: int) -> dict[str, Any]:
    """Return SDPA's arguments for a causal mask in which the last query attends to all keys."""
    if queries == keys:
        return {"is_causal": True}
    return {"attn_mask": torch.ones(queries, keys, dtype=torch.bool).tril_(keys - queries)}


@lru_cache(maxsize=8)  # all layers of a step ask the same
def _plan_attention(starts_q: tuple[int, ...], starts_k: tuple[int, ...]) -> AttentionPlan:
    spans = [SequenceSpan(*each) for each in zip(starts_q, starts_q[1:], starts_k, starts_k[1:], strict=False)]
    decoding = sorted(
        (span for span in spans if span.query_end - span.query_start == 1), key=lambda span: span.key_count
    )
    singles = [span for span in spans if span.query_end - span.query_start > 1]
    groups: list[list[SequenceSpan]] = []
    while decoding:
        longest, total, count = decoding[-1].key_count, 0, 0
        for number, span in enumerate(reversed(decoding), 1):
            total += span.key_count
            count = number if longest * number <= MAX_PADDING_RATIO * total else count
        group = sorted(decoding[-count:], key=lambda span: span.query_start)
        if count > 1:
            groups.append(group)
        else:
            singles += group
        del decoding[-count:]
    if not groups:
        return AttentionPlan([], singles, None)
    decode_groups, placed, reads, start = [], [], [], 0
    for group in groups:
        decode_group, read = _make_decode_group(group, start)
        decode_groups.append(decode_group)
        reads.append(read)
        start += read.numel()
    for span in singles:
        placed.append(SequenceSpan(span.query_start, span.query_end, start, start + span.key_count))
        reads.append(torch.arange(span.key_start, span.key_end))
        start += span.key_count
    return AttentionPlan(decode_groups, placed, torch.cat(reads))


def _make_decode_group(group: list[SequenceSpan], start: int) -> tuple[DecodeGroup, torch.Tensor]:
    """Return the group of requests, and the indices of the keys that they read, with padding."""
    first = torch.tensor([span.key_start for span in group]).unsqueeze(1)
    lengths = torch.tensor([span.key_count for span in group]).unsqueeze(1)
    columns = torch.arange(int(lengths.max())).unsqueeze(0)
    mask = columns < lengths
    begin = group[0].query_start
    rows: torch.Tensor | slice = torch.tensor([span.query_start for span in group])
    if [span.query_start for span in group] == list(range(begin, begin + len(group))):
        rows = slice(begin, begin + len(group))
    return DecodeGroup(rows, start, mask[:, None, None, :]), torch.where(mask, first + columns, first).flatten()


AttentionInterface.register(KERNEL_NAME, compute_attention)
