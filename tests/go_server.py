"""A server that is built with Go from the module of a folder, for tests: it can be killed and started again.

s3server/gateway.py and ociserver/registry.py are such servers. Each folder has a `go.mod` that pins the program as its
tool; it is built once into the user's cache.
"""

import hashlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from run_isolation import build_lock

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hone"
START_SECONDS = 60.0


def find_missing_program(server: str) -> str | None:
    """Return why this machine can't build and run a server; None where it can."""
    for program in ("go", "openssl"):
        if not shutil.which(program):
            return f"{server} is built with Go and uses openssl, and there is no {program} on the PATH"
    return None


def build_tool(module: Path) -> Path:
    """Return the program of a module, built if the cache lacks it. Raises subprocess.CalledProcessError."""
    inputs = b"".join((module / name).read_bytes() for name in ("go.mod", "go.sum"))
    program = CACHE / module.name / hashlib.sha256(inputs).hexdigest()[:12]
    with build_lock(program):
        if not program.exists():
            part = program.with_suffix(".part")
            environment = dict(os.environ, CGO_ENABLED="0", GOWORK="off", GOFLAGS="-mod=readonly")
            command = ["go", "build", "-trimpath", "-ldflags", "-s -w", "-o", str(part), "tool"]
            subprocess.run(command, cwd=module, env=environment, check=True)
            part.rename(program)  # so that a build that was cut short is never used
    return program


class GoServer:
    """A program that listens at `host`, 127.0.0.1 and a port, while the context lasts."""

    def __init__(self, host: str, command: Sequence[object], variables: Mapping[str, str], log: Path) -> None:
        self.host = host
        self._command = [str(word) for word in command]
        self._environment = {**os.environ, **variables}
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def port(self) -> int:
        """The port of `host`."""
        return int(self.host.rpartition(":")[2])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()

    def start(self) -> None:
        """Start the server, also again after `kill`. Raises OSError when it does not listen."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        address = self.host.partition(":")[0]
        end = time.monotonic() + START_SECONDS
        while True:
            try:
                socket.create_connection((address, self.port), timeout=1).close()
                return
            except OSError:
                if time.monotonic() > end or self._process.poll() is not None:
                    raise OSError(f"the server does not listen: {self._log.read_text()}") from None
                time.sleep(0.02)

    def kill(self) -> None:
        """End the server in the middle of what it does."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None
