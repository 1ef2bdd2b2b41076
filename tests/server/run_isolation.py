"""For tests in several processes at the same time: a lock for what they build together, and ports of their own."""

import contextlib
import fcntl
import itertools
import os
import socket
from collections.abc import Iterator
from pathlib import Path

# Below the ports that Linux gives to outgoing connections. Each process of pytest-xdist has its own range.
FIRST_PORT, PORTS_PER_PROCESS = 20_000, 1_000

_numbers = itertools.count(os.getpid())


@contextlib.contextmanager
def build_lock(folder: Path) -> Iterator[None]:
    """Let one process at a time build what is in the folder."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_name(f"{folder.name}.lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def find_free_port() -> int:
    """Return a port that nothing listens on, and that no other process of this run gets."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    for number in itertools.islice(_numbers, PORTS_PER_PROCESS):
        port = FIRST_PORT + worker * PORTS_PER_PROCESS + number % PORTS_PER_PROCESS
        with socket.socket() as bound, contextlib.suppress(OSError):
            bound.bind(("127.0.0.1", port))
            return port
    raise OSError(f"none of {PORTS_PER_PROCESS} ports is free")
