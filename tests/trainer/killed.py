"""Run a function in a forked process that is killed at a chosen moment."""

import os
import signal
import time
import traceback
from collections.abc import Callable


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
