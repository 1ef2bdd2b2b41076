"""AMD Instinct GPUs and the memory that one process sees."""

from dataclasses import dataclass

GB = 1024**3
"""AMD's data sheets write GB for what HBM stacks hold in powers of two: rocm-smi shows 64 GiB of an MI210."""


@dataclass(frozen=True)
class Gpu:
    """A device. `memory` is in bytes, of one device as ROCm lists it."""

    name: str
    memory: int
    note: str = ""


GPUS = (
    Gpu("MI210", 64 * GB),
    Gpu("MI250X", 64 * GB, "a die; each of its two is a device"),
    Gpu("MI300A", 128 * GB, "shared with the host"),
    Gpu("MI300X", 192 * GB),
    Gpu("MI308X", 192 * GB),
    Gpu("MI325X", 256 * GB),
    Gpu("MI350X", 288 * GB),
    Gpu("MI355X", 288 * GB),
)
"""HBM sizes by AMD's data sheets (amd.com/en/products/accelerators/instinct). A partitioned GPU (NPS, CPX) has less."""

DEVICE_IDS = {
    "740f": "MI210",
    "7408": "MI250X",
    "740c": "MI250X",
    "74a0": "MI300A",
    "74a1": "MI300X",
    "74a9": "MI300X",
    "74b5": "MI300X",
    "74bd": "MI300X",
    "74a2": "MI308X",
    "74b6": "MI308X",
    "74a5": "MI325X",
    "74b9": "MI325X",
    "75a0": "MI350X",
    "75b0": "MI350X",
    "75a3": "MI355X",
    "75b3": "MI355X",
}
"""PCI device ids, those of virtual functions and of variants with the same memory included."""
