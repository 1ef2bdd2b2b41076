"""What the run holds of the memory."""

import psutil
import torch

SPEED = "tokens_per_second"
MEMORY = ("device_memory_allocated", "device_memory_reserved", "process_memory")
"""What else is logged, by name: metrics.jsonl has it, and TensorBoard does not."""


def memory() -> dict[str, int]:
    """Bytes: with a GPU, the most that torch had allocated and reserved on it since the last call; else the process's
    resident set, which holds the libraries too."""
    if not torch.cuda.is_available():
        return {"process_memory": psutil.Process().memory_info().rss}
    found = {
        "device_memory_allocated": torch.cuda.max_memory_allocated(),
        "device_memory_reserved": torch.cuda.max_memory_reserved(),
    }
    torch.cuda.reset_peak_memory_stats()
    return found
