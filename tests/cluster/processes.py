"""Stop processes of pods, which on the local cluster are processes of this machine."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def processes_of(pod_uid: str, word: str) -> list[int]:
    """Return the ids of a pod's processes whose command line contains `word`."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            group, command = (folder / "cgroup").read_text(), (folder / "cmdline").read_text()
        except OSError:  # it has ended
            continue
        if word in command and (pod_uid in group or pod_uid.replace("-", "_") in group):
            found.append(int(folder.name))
    return found


@contextmanager
def stopped(pids: list[int]) -> Iterator[None]:
    """Stop the processes, at least one, until the context ends."""
    assert pids
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
