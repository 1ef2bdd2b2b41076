"""The size of the key-value cache, and the engine's other memory."""

import os
import re
from pathlib import Path

import pytest
import torch
from hone_server.hardware import (
    CACHE_TOKENS,
    PAGE_TOKENS,
    CacheTooSmall,
    KvPlan,
    available_memory,
    bytes_per_token,
    cpu_threads,
    free_memory,
    plan_cache,
)
from hone_server.weights.loader import float32_is_better
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

PLENTY = 2**40


def test_ample_memory_gives_the_models_context_and_a_bounded_cache():
    plan = plan_cache(position_limit=4096, wanted_len=None, bytes_per_token=1000, budget=PLENTY)
    assert plan == KvPlan(4096, CACHE_TOKENS // PAGE_TOKENS)


def test_one_request_of_the_greatest_length_always_fits():
    plan = plan_cache(position_limit=10 * CACHE_TOKENS, wanted_len=None, bytes_per_token=1000, budget=PLENTY)
    assert plan.max_model_len == 10 * CACHE_TOKENS
    assert plan.num_blocks * PAGE_TOKENS > plan.max_model_len


def test_scarce_memory_shortens_a_context_that_was_not_requested():
    plan = plan_cache(position_limit=131072, wanted_len=None, bytes_per_token=1000, budget=1000 * PAGE_TOKENS * 10)
    assert plan.max_model_len == PAGE_TOKENS * 10


def test_a_requested_context_is_not_shortened_silently():
    with pytest.raises(CacheTooSmall) as caught:
        plan_cache(position_limit=131072, wanted_len=8192, bytes_per_token=1000, budget=1000 * PAGE_TOKENS * 10)
    assert caught.value.fits == PAGE_TOKENS * 10


def test_the_context_is_never_longer_than_the_models():
    assert plan_cache(position_limit=512, wanted_len=4096, bytes_per_token=1, budget=PLENTY).max_model_len == 512


def test_bytes_of_a_token_count_keys_and_values_of_every_layer():
    config = LlamaConfig(num_hidden_layers=3, num_attention_heads=8, num_key_value_heads=2, hidden_size=64)
    assert bytes_per_token(config, 2) == 2 * 3 * 2 * 8 * 2


def test_a_gpu_has_room_for_a_full_batch_of_the_longest_requests():
    plan = plan_cache(position_limit=8192, wanted_len=None, bytes_per_token=1000, budget=PLENTY, requests=64)
    assert plan.num_blocks * PAGE_TOKENS >= 64 * 8192
    scarce = plan_cache(8192, None, bytes_per_token=1000, budget=1000 * 100_000, requests=64)
    assert 100_000 - PAGE_TOKENS < scarce.num_blocks * PAGE_TOKENS <= 100_000


def test_the_free_memory_is_that_of_the_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: {1: (5 * GIB, 9 * GIB)}[device.index])
    assert free_memory(torch.device("cuda", 1)) == 5 * GIB
    assert free_memory(torch.device("cpu")) > 2**20


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


def test_prompts_of_many_lengths_leave_little_behind(serve, base_folder, tmp_path):
    """This needs bfloat16 instructions; without them 16 bits are widened, and nothing is kept for any length."""
    AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.bfloat16).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(base_folder).save_pretrained(tmp_path)

    with serve(str(tmp_path), "--name", "tiny") as server:

        def held_after(lengths: range) -> float:
            for length in lengths:
                body = {"model": "tiny", "prompt": [10 + length % 7] * length, "max_tokens": 1}
                assert server.post("/v1/completions", body).status_code == 200
            status = Path(f"/proc/{server.process.pid}/status").read_text()
            return int(re.findall(r"RssAnon:\s+(\d+)", status)[0]) / 1024

        first = held_after(range(2, 30))
        assert held_after(range(30, 330)) - first < 100, "MiB; 670 with what oneDNN keeps by default"
