"""Each request attends to its own keys, with the results of one masked attention over the full batch."""

from typing import Any

import pytest
import torch
from hone_server.engine import ragged_attention
from torch.nn.functional import scaled_dot_product_attention

HEADS, KV_HEADS, SIZE = 6, 2, 16
SCALE = 0.3


class Layer:
    layer_idx = 0


class Cache:
    """Holds the keys and values of all tokens of the batch, including those of its own queries."""

    def __init__(self, tokens: int) -> None:
        self.keys, self.values = torch.randn(tokens, KV_HEADS, SIZE), torch.randn(tokens, KV_HEADS, SIZE)

    def update(self, key_states: Any, value_states: Any, layer_idx: int, kwargs: dict[str, Any]) -> Any:
        [read] = kwargs["read_index"]
        found = [tensor[read] if read.numel() else tensor for tensor in (self.keys, self.values)]
        return tuple(tensor.transpose(0, 1).unsqueeze(0) for tensor in found)


def starts(lengths: list[int]) -> list[int]:
    return [sum(lengths[:place]) for place in range(len(lengths) + 1)]


def expected(query: torch.Tensor, cache: Cache, queries: list[int], keys: list[int]) -> torch.Tensor:
    mask = torch.zeros(sum(queries), sum(keys), dtype=torch.bool)
    for first, start, own, known in zip(starts(queries), starts(keys), queries, keys, strict=False):
        mask[first : first + own, start : start + known] = torch.ones(own, known, dtype=torch.bool).tril(known - own)
    by_head = (
        tensor.transpose(0, 1).repeat_interleave(HEADS // KV_HEADS, dim=0) for tensor in (cache.keys, cache.values)
    )
    return scaled_dot_product_attention(query[0], *by_head, attn_mask=mask, scale=SCALE).transpose(0, 1)[None]


@pytest.mark.parametrize(
    ("queries", "keys"),
    [
        ([1], [9]),
        ([7], [7]),
        ([3], [10]),
        ([1, 1, 1], [5, 5, 5]),
        ([1, 1, 1, 1], [5, 90, 6, 40]),
        ([1, 5, 1, 3, 1, 1], [8, 5, 7, 30, 200, 9]),
        ([4, 1, 6], [4, 1, 6]),
        ([1, 1], [1, 1]),
    ],
)
def test_it_is_the_masked_attention_of_the_whole_batch(queries: list[int], keys: list[int]) -> None:
    torch.manual_seed(0)
    query, cache = torch.randn(1, HEADS, sum(queries), SIZE), Cache(sum(keys))
    read = torch.arange(sum(keys)) if queries != keys else torch.empty(0, dtype=torch.long)
    out, _ = ragged_attention.compute_attention(
        Layer(),
        query,
        cache.keys,
        cache.values,
        None,
        scaling=SCALE,
        cache=cache,
        cu_seq_lens_q=torch.tensor(starts(queries)),
        cu_seq_lens_k={"full_attention": torch.tensor(starts(keys))},
        read_index=[read],
    )
    torch.testing.assert_close(out, expected(query, cache, queries, keys))


def test_padding_at_most_doubles_the_keys() -> None:
    keys = [3, 1000, 4, 900, 70, 5, 64, 3000]
    plan = ragged_attention._plan_attention(tuple(range(len(keys) + 1)), tuple(starts(keys)))
    assert plan.key_order is not None
    assert sum(keys) < len(plan.key_order) <= 2 * sum(keys)
    assert len(plan.decode_groups) < len(keys) / 2


@pytest.mark.parametrize(
    ("config", "fits"),
    [
        ({}, True),
        ({"sliding_window": None, "layer_types": ["full_attention"] * 2}, True),
        ({"sliding_window": 128}, False),
        ({"layer_types": ["full_attention", "sliding_attention"]}, False),
        ({"layer_types": ["full_attention", "linear_attention"]}, False),
    ],
)
def test_models_with_other_layers_keep_the_attention_of_transformers(config: dict[str, Any], fits: bool) -> None:
    assert ragged_attention.supports_model(type("Config", (), config)) is fits
