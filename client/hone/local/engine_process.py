"""The embedded engine on this machine, as a child process that ends with this program."""

import subprocess
import sys
import weakref
from collections.abc import Sequence
from pathlib import Path

import httpx

from hone.local.trainer_process import find_free_port

STOP_SECONDS = 30.0
LOG_END_LINES = 20


class EngineProcess:
    """A running engine."""

    def __init__(self, arguments: Sequence[str], log: Path) -> None:
        """Start the engine. `arguments`: its models."""
        port = find_free_port()
        self.address = f"http://127.0.0.1:{port}"
        self.log = log
        with log.open("wb") as output:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "hone_server", *arguments, "--host", "127.0.0.1", "--port", str(port)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.stop = weakref.finalize(self, _stop, self._child)

    def read_exit_code(self) -> int | None:
        """Return the exit code; None while it runs."""
        return self._child.poll()

    def is_ready(self) -> bool:
        """Return whether all models have answered."""
        try:
            with httpx.Client(trust_env=False, timeout=2.0) as http:
                return http.get(f"{self.address}/health").status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False

    def read_log_end(self) -> str:
        """Return the last lines of the log."""
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_END_LINES:])


def _stop(child: "subprocess.Popen[bytes]") -> None:
    child.terminate()
    try:
        child.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
