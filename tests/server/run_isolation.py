"""For tests in several processes at the same time: a lock for what they build together, and ports of their own."""

import contextlib
import fcntl
import itertools
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

# Below the ports that Linux gives to outgoing connections. Each process of pytest-xdist has its own range.
FIRST_PORT, PORTS_PER_PROCESS = 20_000, 1_000

_numbers = itertools.count(os.getpid())
# The locks of the ports that this process has given out, which other processes therefore don't get.
_reserved: list[IO[str]] = []


@contextlib.contextmanager
def build_lock(folder: Path) -> Iterator[None]:
    """Let one process at a time build what is in the folder."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_name(f"{folder.name}.lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def find_free_port() -> int:
    """Return a port that nothing listens on, and that no other process of the tests gets while this one runs."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    for number in itertools.islice(_numbers, PORTS_PER_PROCESS):
        port = FIRST_PORT + worker * PORTS_PER_PROCESS + number % PORTS_PER_PROCESS
        with socket.socket() as bound, contextlib.suppress(OSError):
            bound.bind(("127.0.0.1", port))
            _reserve(port)
            return port
    raise OSError(f"none of {PORTS_PER_PROCESS} ports is free")


def _reserve(port: int) -> None:
    """Keep a port from other processes of the tests. Raises OSError when one of them has it.

    A port is not used at once: a second pytest without workers, which has the same range, could find it free too.
    """
    folder = Path(tempfile.gettempdir()) / "hone-test-ports"
    folder.mkdir(exist_ok=True)
    file = (folder / str(port)).open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise
    _reserved.append(file)
