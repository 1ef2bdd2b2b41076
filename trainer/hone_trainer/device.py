"""The device that training runs on, as far as choices depend on it."""

import os
from pathlib import Path

import torch
from transformers.utils.import_utils import is_flash_attn_2_available

from hone_trainer.profile import Device

_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def here() -> Device:
    """The first GPU that torch sees, else this machine's CPU."""
    cores = len(os.sched_getaffinity(0))
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return Device(
            "gpu",
            properties.name,
            properties.total_memory,
            torch.cuda.is_bf16_supported(including_emulation=False),
            is_flash_attn_2_available(),
            cores,
        )
    can = torch.cpu.get_capabilities()
    has_bfloat16 = any(can.get(name) for name in ("avx512_bf16", "amx_bf16", "sve_bf16"))
    return Device("cpu", "this CPU", _memory(), has_bfloat16, False, cores)


def _memory() -> int:
    """Bytes of this machine, or of the container when it has fewer."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [Path(path).read_text().strip() for path in _LIMITS if Path(path).exists()]
    return min([total, *(int(limit) for limit in limits if limit.isdigit())])
