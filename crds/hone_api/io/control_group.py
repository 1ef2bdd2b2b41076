"""Limits of the container that a program runs in, which the kernel writes into the files of its control group."""

from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
# Of version 2 of control groups, and of version 1.
_MEMORY_LIMITS = ("memory.max", "memory/memory.limit_in_bytes")


def read_control_group(name: str) -> str | None:
    """Return a value as the kernel writes it; None: there is none."""
    try:
        return (_ROOT / name).read_text().strip()
    except OSError:
        return None


def read_memory_limit() -> int | None:
    """Return the most bytes of memory that the container may use; None: it has no limit."""
    found = [read_control_group(name) for name in _MEMORY_LIMITS]
    return min((int(limit) for limit in found if limit and limit.isdigit()), default=None)
