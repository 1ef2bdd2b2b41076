"""`python3 -m PACKAGE.probe COUNT PIPE`: write as JSON what torch finds, and whether this many GPUs compute.

PIPE is the number of an open file descriptor.
"""

import json
import os
import sys
from importlib import import_module
from typing import Any

# Rows of the matrices that are multiplied: the sum of their product is a power of two, exact in float32.
SIZE = 256


def probe(torch: Any, gpu_count: int) -> dict[str, Any]:
    """Return the fields of facts.Torch. `torch` is the module."""
    error = ""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as failure:
        error = str(failure)
    seen = 0 if error else torch.cuda.device_count()
    distributed = torch.distributed
    return {
        "version": str(torch.__version__),
        "hip": torch.version.hip,
        "cuda": torch.version.cuda,
        "seen": seen,
        "error": error,
        "devices": [try_device(torch, index) for index in range(min(seen, gpu_count))],
        "architectures": [] if error else torch.cuda.get_arch_list(),
        "has_collectives": bool(distributed.is_available() and distributed.is_nccl_available()),
    }


def try_device(torch: Any, index: int) -> dict[str, str]:
    """Allocate and multiply on one GPU. Return the fields of facts.Device."""
    found = {"name": f"device {index}", "architecture": "unknown", "error": ""}
    try:
        properties = torch.cuda.get_device_properties(index)
        found["name"] = properties.name
        found["architecture"] = getattr(properties, "gcnArchName", "") or f"sm_{properties.major}{properties.minor}"
        ones = torch.ones(SIZE, SIZE, device=f"cuda:{index}")
        total = float((ones @ ones).sum())
    except Exception as failure:  # a driver's errors have many types
        return found | {"error": str(failure) or type(failure).__name__}
    if total != SIZE**3:
        return found | {"error": f"the sum of a product of matrices is {total} instead of {SIZE**3}"}
    return found


if __name__ == "__main__":
    # By its name, because neither the image with this file nor its type checks need to have torch.
    found = probe(import_module("torch"), int(sys.argv[1]))
    os.write(int(sys.argv[2]), json.dumps(found).encode())
