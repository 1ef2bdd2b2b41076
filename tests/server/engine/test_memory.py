"""The size of the key-value cache, and the engine's other memory."""

import os
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from hone_server.hardware import (
    MAX_CPU_CACHE_TOKENS,
    PAGE_TOKENS,
    CacheTooSmallError,
    KVCacheConfig,
    compute_kv_bytes_per_token,
    count_cpu_threads,
    measure_available_bytes,
    measure_free_bytes,
    plan_kv_cache,
)
from hone_server.weights.loader import should_compute_in_float32
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

PLENTY = 2**40
# Products that oneDNN keeps unless it is configured (its documentation, "Primitive Cache").
ONEDNN_DEFAULT = "1024"


def test_ample_memory_gives_the_models_context_and_a_bounded_cache() -> None:
    plan = plan_kv_cache(position_limit=4096, requested_len=None, token_bytes=1000, budget_bytes=PLENTY)
    assert plan == KVCacheConfig(4096, MAX_CPU_CACHE_TOKENS // PAGE_TOKENS)


def test_one_request_of_the_greatest_length_always_fits() -> None:
    plan = plan_kv_cache(
        position_limit=10 * MAX_CPU_CACHE_TOKENS, requested_len=None, token_bytes=1000, budget_bytes=PLENTY
    )
    assert plan.max_model_len == 10 * MAX_CPU_CACHE_TOKENS
    assert plan.page_count * PAGE_TOKENS > plan.max_model_len


def test_scarce_memory_shortens_a_context_that_was_not_requested() -> None:
    plan = plan_kv_cache(
        position_limit=131072, requested_len=None, token_bytes=1000, budget_bytes=1000 * PAGE_TOKENS * 10
    )
    assert plan.max_model_len == PAGE_TOKENS * 10


def test_a_requested_context_is_not_shortened_silently() -> None:
    with pytest.raises(CacheTooSmallError) as caught:
        plan_kv_cache(position_limit=131072, requested_len=8192, token_bytes=1000, budget_bytes=1000 * PAGE_TOKENS * 10)
    assert caught.value.max_tokens == PAGE_TOKENS * 10


def test_the_context_is_never_longer_than_the_models() -> None:
    assert (
        plan_kv_cache(position_limit=512, requested_len=4096, token_bytes=1, budget_bytes=PLENTY).max_model_len == 512
    )


def test_bytes_of_a_token_count_keys_and_values_of_every_layer() -> None:
    config = LlamaConfig(num_hidden_layers=3, num_attention_heads=8, num_key_value_heads=2, hidden_size=64)
    assert compute_kv_bytes_per_token(config, 2) == 2 * 3 * 2 * 8 * 2


def test_a_gpu_has_room_for_a_full_batch_of_the_longest_requests() -> None:
    plan = plan_kv_cache(
        position_limit=8192, requested_len=None, token_bytes=1000, budget_bytes=PLENTY, max_requests=64
    )
    assert plan.page_count * PAGE_TOKENS >= 64 * 8192
    scarce = plan_kv_cache(8192, None, token_bytes=1000, budget_bytes=1000 * 100_000, max_requests=64)
    assert 100_000 - PAGE_TOKENS < scarce.page_count * PAGE_TOKENS <= 100_000


def test_the_free_memory_is_that_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: {1: (5 * GIB, 9 * GIB)}[device.index])
    assert measure_free_bytes(torch.device("cuda", 1)) == 5 * GIB
    assert measure_free_bytes(torch.device("cpu")) > 2**20


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
def test_sixteen_bits_are_widened_where_that_is_faster_and_fits(
    dtype: Any, weights: Any, free: Any, bfloat16: bool, better: bool
) -> None:
    assert should_compute_in_float32(dtype, weights, free, bfloat16) is better


def test_the_machine_has_memory_and_threads() -> None:
    assert measure_available_bytes() > 2**20
    assert 1 <= count_cpu_threads() <= (os.cpu_count() or 1)


def test_prompts_of_many_lengths_leave_little_behind(
    serve: Callable[..., AbstractContextManager[Any]],
    base_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """This needs bfloat16 instructions; without them 16 bits are widened, and nothing is kept for any length.

    CPUs with matrix units keep more for each length, so that a fixed bound holds on other CPUs only.
    """
    AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.bfloat16).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(base_folder).save_pretrained(tmp_path)

    def grown() -> float:
        """Return the MiB that 300 more lengths have added to an engine's own memory."""
        with serve(str(tmp_path), "--name", "tiny") as server:

            def held_after(lengths: range) -> float:
                for length in lengths:
                    body = {"model": "tiny", "prompt": [10 + length % 7] * length, "max_tokens": 1}
                    assert server.post("/v1/completions", body).status_code == 200
                status = Path(f"/proc/{server.process.pid}/status").read_text()
                return int(re.findall(r"RssAnon:\s+(\d+)", status)[0]) / 1024

            first = held_after(range(2, 30))
            return held_after(range(30, 330)) - first

    ours = grown()
    if ours >= 100:
        for variable in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
            monkeypatch.setenv(variable, ONEDNN_DEFAULT)
        assert ours < grown() / 2, f"{ours} MiB, at least half of what oneDNN keeps by default"
