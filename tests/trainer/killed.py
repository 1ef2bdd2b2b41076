"""Run a function in a forked process that is killed at a chosen moment, and wait for what it has requested."""

import os
import signal
import time
import traceback
from collections.abc import Callable
from pathlib import Path

WAIT_SECONDS = 60
# The state of a connection in /proc/net/tcp whose client has closed it, and whose server has not.
CLOSE_WAIT = "08"


class Child:
    """A process that calls a function and ends. Its exit code is 1 if the function raises."""

    def __init__(self, function: Callable[[], object]) -> None:
        self._id = os.fork()
        if self._id:
            return
        try:
            function()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)

    def kill_after(self, seconds: float) -> bool:
        """Kill the process unless it ends before, and return whether it was killed."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            found, status = os.waitpid(self._id, os.WNOHANG)
            if found:
                assert status == 0
                return False
            time.sleep(0.0005)
        os.kill(self._id, signal.SIGKILL)
        _, status = os.waitpid(self._id, 0)
        return os.WIFSIGNALED(status)

    def wait(self) -> None:
        """Wait for the end, which must be a success."""
        assert os.waitpid(self._id, 0)[1] == 0


def wait_for_late_requests(port: int) -> None:
    """Wait until a server on 127.0.0.1 has answered the requests of clients that were killed.

    A server keeps the connection of a killed client until it has done what was requested.
    """
    end = time.monotonic() + WAIT_SECONDS
    while _has_left_connections(port):
        assert time.monotonic() < end, "the server still answers a client that was killed"
        time.sleep(0.005)


def _has_left_connections(port: int) -> bool:
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return any(local.endswith(f":{port:04X}") and state == CLOSE_WAIT for _, local, _, state, *_ in rows)
