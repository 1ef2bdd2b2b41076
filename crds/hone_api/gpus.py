"""AMD GPUs: their PCI device ids, their memory, and how much of it one process can use.

The ids are those of AMD's `amdgpu.ids`, as in the node labeller and in the GPU operator's rules for nodes.
"""

import re
from dataclasses import dataclass

# AMD's data sheets write GB for sizes in powers of two: rocm-smi shows 64 GiB of an MI210.
GB = 1024**3

# Bytes of a GPU's memory that ROCm does not list, at most. In public logs torch names 191.98 GiB of an MI300X, 191.67
# to 191.69 of its virtual function, 255.69 to 255.98 of GPUs with 256 GiB, 287.98 of those with 288, 63.98 of those
# with 64, and 31.86 of a Radeon AI PRO R9700.
WITHHELD = 352 * 1024**2


@dataclass(frozen=True)
class Gpu:
    """A device. `memory` is in bytes: what a process sees of one device as ROCm lists it, at least."""

    name: str
    memory: int
    note: str = ""

    @property
    def shares_host_memory(self) -> bool:
        """Return whether the device uses the host's memory."""
        return self.note == SHARED


# Sizes by AMD's data sheets (amd.com/en/products/accelerators/instinct). A partitioned GPU (NPS, CPX) has less.
CARD_MEMORY = {
    "MI210": 64 * GB,
    "MI250X": 64 * GB,
    "MI300A": 128 * GB,
    "MI300X": 192 * GB,
    "MI308X": 192 * GB,
    "MI325X": 256 * GB,
    "MI350P": 144 * GB,
    "MI350X": 288 * GB,
    "MI355X": 288 * GB,
    "Radeon AI PRO R9700": 32 * GB,
}

# Compute units of a full GPU that can be partitioned, by AMD's data sheets, as in labels: a partition has fewer. By
# default AMD's GPU operator makes its labeller add these labels; those of partitions only if nodeLabellerArguments
# names them.
COMPUTE_UNITS = {"MI300A": "228", "MI300X": "304", "MI308X": "80", "MI325X": "304", "MI350X": "256", "MI355X": "256"}

SHARED = "shared with the host"
NOTES = {"MI250X": "a die; each of its two is a device", "MI300A": SHARED}

# The Instinct GPUs that plans are compared with.
GPUS = tuple(
    Gpu(name, memory - WITHHELD, NOTES.get(name, "")) for name, memory in CARD_MEMORY.items() if name.startswith("MI")
)

# PCI device ids, those of virtual functions and of variants with the same memory included.
DEVICE_IDS = {
    "740f": "MI210",
    "7410": "MI210",
    "7408": "MI250X",
    "740c": "MI250X",
    "74a0": "MI300A",
    "74a1": "MI300X",
    "74a9": "MI300X",
    "74b5": "MI300X",
    "74bd": "MI300X",
    "74a2": "MI308X",
    "74a8": "MI308X",
    "74b6": "MI308X",
    "74bc": "MI308X",
    "74a5": "MI325X",
    "74b9": "MI325X",
    "75a8": "MI350P",
    "75b8": "MI350P",
    "75a0": "MI350X",
    "75b0": "MI350X",
    "75a3": "MI355X",
    "75b3": "MI355X",
    "7551": "Radeon AI PRO R9700",
}

_RESOURCE = re.compile(r"amd\.com/(?:gpu|[sdtqc]px_nps\d+)")


def is_gpu_resource(name: str) -> bool:
    """Return whether an extended resource is AMD's GPUs; `amd.com/nic` and FPGAs are not."""
    return _RESOURCE.fullmatch(name) is not None
