"""The device of training, as far as choices depend on it."""

import os
from importlib.util import find_spec

import torch
from hone_api.gpus import Gpu
from hone_api.io.control_group import read_memory_limit
from transformers.utils.import_utils import is_flash_attn_2_available

from hone_trainer.config.auto_profile import TrainingDevice


def detect_device() -> TrainingDevice:
    """Return the first GPU that torch finds, else this machine's CPU."""
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return TrainingDevice(
            "gpu",
            properties.name,
            properties.total_memory,
            torch.cuda.is_bf16_supported(including_emulation=False),
            is_flash_attn_2_available(),
            _count_cores(),
        )
    # torch 2.10, the oldest that pyproject.toml allows, can't report the capabilities of its CPU.
    can: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    has_bfloat16 = any(can.get(name) for name in ("avx512_bf16", "amx_bf16", "sve_bf16"))
    return TrainingDevice("cpu", "this CPU", _read_memory_bytes(), has_bfloat16, False, _count_cores())


def describe_target_device(gpus: int, given_gpu: Gpu | None) -> TrainingDevice:
    """Return the device of a job that is only prepared here, perhaps without its GPUs; `given_gpu` has precedence.

    A GPU without any known property is assumed to be an Instinct, which computes in bfloat16.
    """
    if not gpus or (torch.cuda.is_available() and not given_gpu):
        return detect_device()
    name, memory = (given_gpu.name, given_gpu.memory) if given_gpu else ("the GPU", None)
    return TrainingDevice("gpu", name, memory, True, find_spec("flash_attn") is not None, _count_cores())


def _count_cores() -> int:
    return len(os.sched_getaffinity(0))


def _read_memory_bytes() -> int:
    """Return the bytes of this machine, or of the container when it has fewer."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = read_memory_limit()
    return total if limit is None else min(total, limit)
