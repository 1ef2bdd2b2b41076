"""Measure what the machine offers, within the container's limits: CPU threads, memory, and a cache that fits."""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PAGE_TOKENS = 32
CACHE_TOKENS = 16384  # unless one request needs more; requests beyond it wait, or are evicted and computed again
GPU_CACHE_SHARE = 0.8  # of a GPU's, which nothing else needs; the rest is for activations
MIN_MODEL_LEN = 16


@dataclass(frozen=True)
class KvPlan:
    """The key-value cache of one engine: `num_blocks` pages of PAGE_TOKENS tokens, and the longest request it takes."""

    max_model_len: int
    num_blocks: int


class CacheTooSmall(Exception):
    """The requested context does not fit the memory; `fits` is the number of tokens that does."""

    def __init__(self, fits: int) -> None:
        super().__init__(fits)
        self.fits = fits


def plan_cache(
    position_limit: int, wanted_len: int | None, bytes_per_token: int, budget: int, *, requests: int | None = None
) -> KvPlan:
    """Size one engine's cache from the budget in bytes: CACHE_TOKENS at most, or room for this many full `requests`.

    The context is `wanted_len`, or else the model's own limit shortened to what fits. Raises CacheTooSmall if
    `wanted_len`, or MIN_MODEL_LEN, does not fit.
    """
    fits = budget // bytes_per_token // PAGE_TOKENS * PAGE_TOKENS
    length = min(wanted_len, position_limit) if wanted_len else min(position_limit, fits)
    if length > fits or length < min(MIN_MODEL_LEN, position_limit):
        raise CacheTooSmall(fits)
    # One page more than a request needs, because the scheduler keeps a margin of free pages.
    one = math.ceil(length / PAGE_TOKENS) + 1
    most = CACHE_TOKENS if requests is None else requests * one * PAGE_TOKENS
    return KvPlan(max_model_len=length, num_blocks=max(one, min(most, fits) // PAGE_TOKENS))


def bytes_per_token(config: Any, dtype_bytes: int) -> int:
    """Return the key-value cache of one token in bytes: keys and values of every layer."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * head_dim * dtype_bytes)


def read_bytes_per_token(config: Any, dtype_bytes: int, batch_tokens: int) -> int:
    """Return the memory that a GPU needs to read one token of the cache, in bytes, by the formulas of transformers.

    It holds the copies of keys and values for each query head, two attention masks, and an index.
    """
    heads = config.num_attention_heads
    key_value_heads = getattr(config, "num_key_value_heads", None) or heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return int((2 * heads + key_value_heads) * head_dim * dtype_bytes + 2 * batch_tokens * dtype_bytes + 8)


def free_memory(device: Any) -> int:
    """Return the free bytes on the device of the weights."""
    if device.type == "cpu":
        return available_memory()
    import torch

    return int(torch.cuda.mem_get_info(device)[0])


def available_memory() -> int:
    """Return the bytes that this process may still use: the machine's, or what is left of the container's limit."""
    machine = next(
        int(line.split()[1]) * 1024
        for line in Path("/proc/meminfo").read_text().splitlines()
        if line.startswith("MemAvailable:")
    )
    limit, used, stat = _cgroup("memory.max"), _cgroup("memory.current"), _cgroup("memory.stat")
    if limit is None or used is None or stat is None or limit == "max":
        return machine
    # The page cache of the weights' files counts as used, although the kernel can free it.
    cache = next((int(line.split()[1]) for line in stat.splitlines() if line.startswith("inactive_file ")), 0)
    return min(machine, max(0, int(limit) - int(used) + cache))


def cpu_threads() -> int:
    """Return the CPUs that this process may use. torch would count the machine's and ignore the container's limit."""
    allowed = len(os.sched_getaffinity(0))
    quota = (_cgroup("cpu.max") or "max 100000").split()
    if quota[0] == "max":
        return allowed
    return max(1, min(allowed, math.ceil(int(quota[0]) / int(quota[1]))))


def has_bfloat16() -> bool:
    """Return whether the CPU computes in bfloat16 (x86: AVX-512 or AMX; Arm: bf16)."""
    words = set(Path("/proc/cpuinfo").read_text().split())
    return not words.isdisjoint({"avx512_bf16", "amx_bf16", "bf16"})


def _cgroup(name: str) -> str | None:
    """Return a value of this container's control group (version 2), as the kernel writes it; None: there is none."""
    try:
        return Path("/sys/fs/cgroup", name).read_text().strip()
    except OSError:
        return None
