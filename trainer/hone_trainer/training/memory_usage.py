"""The memory that the run uses."""

import psutil
import torch

SPEED = "tokens_per_second"
# Values that are logged in addition: metrics.jsonl has them, and TensorBoard does not.
MEMORY = ("device_memory_allocated", "device_memory_reserved", "process_memory")


def read_memory_usage() -> dict[str, int]:
    """Return bytes: with a GPU, the peaks that torch allocated and reserved on it since the last call.

    Without a GPU, return the resident set of the process, which includes the libraries.
    """
    if not torch.cuda.is_available():
        return {"process_memory": psutil.Process().memory_info().rss}
    found = {
        "device_memory_allocated": torch.cuda.max_memory_allocated(),
        "device_memory_reserved": torch.cuda.max_memory_reserved(),
    }
    torch.cuda.reset_peak_memory_stats()
    return found
