"""Sizing the key-value cache."""

import os

import pytest
import torch
from hone_server.loading import float32_is_better
from hone_server.memory import (
    CACHE_TOKENS,
    PAGE_TOKENS,
    CacheTooSmall,
    KvPlan,
    available_memory,
    bytes_per_token,
    cpu_threads,
    plan_cache,
)
from transformers import LlamaConfig

PLENTY = 2**40


def test_ample_memory_gives_the_models_context_and_a_bounded_cache():
    plan = plan_cache(position_limit=4096, wanted_len=None, bytes_per_token=1000, budget=PLENTY)
    assert plan == KvPlan(4096, CACHE_TOKENS // PAGE_TOKENS)


def test_one_request_of_the_greatest_length_always_fits():
    plan = plan_cache(position_limit=10 * CACHE_TOKENS, wanted_len=None, bytes_per_token=1000, budget=PLENTY)
    assert plan.max_model_len == 10 * CACHE_TOKENS
    assert plan.num_blocks * PAGE_TOKENS > plan.max_model_len


def test_scarce_memory_shortens_the_context_that_nobody_asked_for():
    plan = plan_cache(position_limit=131072, wanted_len=None, bytes_per_token=1000, budget=1000 * PAGE_TOKENS * 10)
    assert plan.max_model_len == PAGE_TOKENS * 10


def test_a_context_that_was_asked_for_is_not_shortened_silently():
    with pytest.raises(CacheTooSmall) as caught:
        plan_cache(position_limit=131072, wanted_len=8192, bytes_per_token=1000, budget=1000 * PAGE_TOKENS * 10)
    assert caught.value.fits == PAGE_TOKENS * 10


def test_the_context_is_never_longer_than_the_models():
    assert plan_cache(position_limit=512, wanted_len=4096, bytes_per_token=1, budget=PLENTY).max_model_len == 512


def test_bytes_of_a_token_count_keys_and_values_of_every_layer():
    config = LlamaConfig(num_hidden_layers=3, num_attention_heads=8, num_key_value_heads=2, hidden_size=64)
    assert bytes_per_token(config, 2) == 2 * 3 * 2 * 8 * 2


GIB = 2**30


@pytest.mark.parametrize(
    ("dtype", "weights", "free", "bfloat16", "better"),
    [
        (torch.bfloat16, 1 * GIB, 8 * GIB, False, True),
        (torch.float16, 1 * GIB, 8 * GIB, False, True),
        (torch.float32, 1 * GIB, 8 * GIB, False, False),
        (torch.bfloat16, 1 * GIB, 8 * GIB, True, False),
        (torch.bfloat16, 4 * GIB, 8 * GIB, False, False),
    ],
)
def test_sixteen_bits_are_widened_where_that_is_faster_and_fits(dtype, weights, free, bfloat16, better):
    assert float32_is_better(dtype, weights, free, bfloat16) is better


def test_the_machine_has_memory_and_threads():
    assert available_memory() > 2**20
    assert 1 <= cpu_threads() <= (os.cpu_count() or 1)
