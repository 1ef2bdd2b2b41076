"""Servers of trackers on loopback: a real MLflow server with SQLite, and ones that refuse, or accept and never answer.

MLflow's server and Trackio need other versions of packages than Hone is pinned to. They are installed into folders of
the user's cache, once for each list of packages.
"""

import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hone/trackers"
MLFLOW = ("mlflow==3.17.2",)
# Next to Hone's own packages, which come first on the path except for pillow.
TRACKIO = (
    "trackio==0.43.0",
    "pillow==12.3.0",
    "brotli==1.2.1",
    "gradio-client==2.7.2",
    "httptools==0.9.0",
    "python-multipart==0.0.34",
    "uvloop==0.23.0",
    "watchfiles==1.3.0",
)


def _install(name: str, packages: tuple[str, ...], *options: str) -> Path:
    """Return a folder with packages. Raises subprocess.CalledProcessError if they can't be installed."""
    version = sysconfig.get_python_version()
    mark = hashlib.sha256(" ".join([*packages, *options]).encode()).hexdigest()[:12]
    folder = CACHE / f"{name}-{mark}-{version}"
    if not (folder / ".installed").exists():
        scratch = folder.with_name(f"{folder.name}.{os.getpid()}")
        uv = Path(sys.executable).with_name("uv")
        target = [uv, "pip", "install", "--quiet", "--python", sys.executable, "--target", scratch, *options]
        subprocess.run([*target, *packages], check=True)
        (scratch / ".installed").touch()
        try:
            scratch.rename(folder)
        except OSError:  # another test was faster
            shutil.rmtree(scratch)
    return folder


def install_trackio() -> Path:
    """Return the folder for PYTHONPATH with Trackio."""
    return _install("trackio", TRACKIO, "--no-deps")


def run_until_sent(run: Callable[[], Any]) -> Any:
    """Call `run`, which starts a run or starts it again, until the tracker has everything, and return the last result.

    On a busy machine a tracker may lack some at the end of a start.
    """
    for _ in range(6):
        result = run()
        assert result.code == 0, result.log
        if not result.message["tracking"][0]["unsent"]:
            return result
    raise AssertionError(result.message)


def find_free_port() -> int:
    """Return a port on which nobody listens."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class MLflowServer:
    """A real MLflow server, which can be stopped and started again on the same port with the same database."""

    def __init__(self, folder: Path) -> None:
        self.port = find_free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        packages = _install("mlflow", MLFLOW)
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        # Its workers for jobs, ten processes of 300 MB, have nothing to do with tracking.
        settings = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        store = ["--backend-store-uri", f"sqlite:///{self._folder}/mlflow.db", "--workers", "1"]
        self._process = subprocess.Popen(
            [*command, *store],
            cwd=self._folder,
            env={**os.environ, "PYTHONPATH": str(packages), **settings},
            stdout=(self._folder / "log").open("ab"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        end = time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                    return
            except OSError:
                assert self._process.poll() is None, (self._folder / "log").read_text()
                assert time.monotonic() < end
                time.sleep(0.2)

    def stop(self) -> None:
        """Stop it at once."""
        if self._process:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@contextmanager
def open_silent_server() -> Iterator[str]:
    """Yield the URL of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepted: list[socket.socket] = []

        def accept() -> None:
            while True:
                try:
                    accepted.append(listener.accept()[0])
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        for connection in accepted:
            connection.close()
