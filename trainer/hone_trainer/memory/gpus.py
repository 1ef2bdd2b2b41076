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
