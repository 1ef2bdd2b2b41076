"""Measure what the machine offers, within the container's limits: CPU threads, memory, and a cache that fits."""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hone_api.io.control_group import read_control_group, read_memory_limit

PAGE_TOKENS = 32
MAX_CPU_CACHE_TOKENS = (
    16384  # unless one request needs more; requests beyond it wait, or are evicted and computed again
)
GPU_CACHE_SHARE = 0.8  # of a GPU's, which nothing else needs; the rest is for activations
MIN_MODEL_LEN = 16


@dataclass(frozen=True)
class KVCacheConfig:
    """The key-value cache of one engine: `page_count` pages of PAGE_TOKENS tokens, and the longest request it takes."""

    max_model_len: int
    page_count: int


class CacheTooSmallError(Exception):
    """The requested context does not fit the memory; `max_tokens` is the number of tokens that does."""

    def __init__(self, fits: int) -> None:
        super().__init__(fits)
        self.max_tokens = fits


def plan_kv_cache(
    position_limit: int,
    requested_len: int | None,
    token_bytes: int,
    budget_bytes: int,
    *,
    max_requests: int | None = None,
) -> KVCacheConfig:
    """Size one engine's cache from the budget in bytes: MAX_CPU_CACHE_TOKENS at most, or room for `max_requests`.

    The context is `requested_len`, or else the model's own limit shortened to what fits. Raises CacheTooSmallError if
    `requested_len`, or MIN_MODEL_LEN, does not fit.
    """
    max_tokens = budget_bytes // token_bytes // PAGE_TOKENS * PAGE_TOKENS
    length = min(requested_len, position_limit) if requested_len else min(position_limit, max_tokens)
    if length > max_tokens or length < min(MIN_MODEL_LEN, position_limit):
        raise CacheTooSmallError(max_tokens)
    # One page more than a request needs, because the scheduler keeps a margin of free pages.
    request_pages = math.ceil(length / PAGE_TOKENS) + 1
    max_cache_tokens = MAX_CPU_CACHE_TOKENS if max_requests is None else max_requests * request_pages * PAGE_TOKENS
    return KVCacheConfig(
        max_model_len=length, page_count=max(request_pages, min(max_cache_tokens, max_tokens) // PAGE_TOKENS)
    )


def compute_kv_bytes_per_token(config: Any, dtype_bytes: int) -> int:
    """Return the key-value cache of one token in bytes: keys and values of every layer."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * head_dim * dtype_bytes)


def compute_attention_bytes_per_token(config: Any, dtype_bytes: int, batch_tokens: int) -> int:
    """Return the memory that a GPU needs to read one token of the cache, in bytes, by the formulas of transformers.

    It holds the copies of keys and values for each query head, two attention masks, and an index.
    """
    heads = config.num_attention_heads
    key_value_heads = getattr(config, "num_key_value_heads", None) or heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return int((2 * heads + key_value_heads) * head_dim * dtype_bytes + 2 * batch_tokens * dtype_bytes + 8)


def measure_free_bytes(device: Any) -> int:
    """Return the free bytes on the device of the weights."""
    if device.type == "cpu":
        return measure_available_bytes()
    import torch

    return int(torch.cuda.mem_get_info(device)[0])


def measure_available_bytes() -> int:
    """Return the bytes that this process may still use: the machine's, or what is left of the container's limit."""
    machine = next(
        int(line.split()[1]) * 1024
        for line in Path("/proc/meminfo").read_text().splitlines()
        if line.startswith("MemAvailable:")
    )
    limit, used, stat = read_memory_limit(), read_control_group("memory.current"), read_control_group("memory.stat")
    if limit is None or used is None or stat is None:
        return machine
    # The page cache of the weights' files counts as used, although the kernel can free it.
    cache = next((int(line.split()[1]) for line in stat.splitlines() if line.startswith("inactive_file ")), 0)
    return min(machine, max(0, limit - int(used) + cache))


def count_cpu_threads() -> int:
    """Return the CPUs that this process may use. torch would count the machine's and ignore the container's limit."""
    allowed = len(os.sched_getaffinity(0))
    quota = (read_control_group("cpu.max") or "max 100000").split()
    if quota[0] == "max":
        return allowed
    return max(1, min(allowed, math.ceil(int(quota[0]) / int(quota[1]))))


def has_bfloat16() -> bool:
    """Return whether the CPU computes in bfloat16 (x86: AVX-512 or AMX; Arm: bf16)."""
    text = set(Path("/proc/cpuinfo").read_text().split())
    return not text.isdisjoint({"avx512_bf16", "amx_bf16", "bf16"})
