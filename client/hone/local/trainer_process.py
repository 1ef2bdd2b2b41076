"""One FineTuneJob on this machine: the trainer as a child process, and the files by which others find it.

The trainer is that of the cluster and of `hone run`. It has a session of its own and keeps running when this program
ends. It holds a lock, by which every program sees whether it runs. Next to the lock are the manifest, the log, the port
for its progress, and its result. What it trains is in the output folder, as `hone run` leaves it.
"""

import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml
from hone_api.artifacts.trainer_reports import ProgressReport, TerminationMessage
from hone_api.io.durable_files import remove_path, write_atomically
from hone_api.layout import ADAPTER, CACHE, CHECKPOINTS, LOGS, MANIFEST, MERGED, MODEL, PREPARED, REPORT
from pydantic import ValidationError

from hone.errors import ClientError
from hone.local.command_lines import make_trainer_arguments
from hone.local.log_file import read_lines
from hone.objects.views import Object

STOP_SECONDS = 600.0
POLL_SECONDS = 0.1
# What a trainer writes into its output folder.
SAVED = (MANIFEST, ADAPTER, MERGED, MODEL, REPORT, LOGS, PREPARED, CHECKPOINTS, CACHE)
# The processes that this program started, by their lock: an ended child stays in the system until it is waited for.
_children: dict[Path, subprocess.Popen[bytes]] = {}


@dataclass(frozen=True)
class Observed:
    """What is known of a trainer. `exit_code`: of one that this program started."""

    is_running: bool
    started_at: str
    report: ProgressReport | None = None
    result: TerminationMessage | None = None
    exit_code: int | None = None


@dataclass(frozen=True)
class TrainerProcess:
    """A trainer by its folders: `state` for what is known of it, `output` for what it leaves."""

    state: Path
    output: Path

    @property
    def log(self) -> Path:
        """Return the file with what the trainer printed."""
        return self.state / "trainer.log"

    @property
    def exists(self) -> bool:
        """Return whether the job was ever started here."""
        return self._manifest.is_file()

    @property
    def _manifest(self) -> Path:
        return self.state / "finetunejob.yaml"

    @property
    def _result(self) -> Path:
        return self.state / "result.json"

    @property
    def _start(self) -> Path:
        return self.state / "start.json"

    def read_manifest(self) -> list[Object]:
        """Return the objects of the manifest."""
        return list(yaml.safe_load_all(self._manifest.read_text(encoding="utf-8")))

    def read_claims(self) -> dict[str, Path]:
        """Return the folders that stand for the claims of the job."""
        return {key: Path(path) for key, path in self._read_start().get("claims", {}).items()}

    def start(self, documents: Sequence[Object], claims: Mapping[str, Path]) -> None:
        """Start the trainer. Raises ClientError when it runs already with another manifest."""
        self.state.mkdir(parents=True, exist_ok=True)
        lock = self._take_lock()
        if lock is None:
            while not self.exists and self.is_running():  # another thread is about to write it
                time.sleep(POLL_SECONDS)
            if self.read_manifest() == list(documents):
                return
            raise ClientError(
                f"FineTuneJob {self.output.name} runs already, with another spec", "Wait for its end, or stop it."
            )
        try:
            write_atomically(self._manifest, yaml.safe_dump_all(documents, sort_keys=False, allow_unicode=True))
            foreign = self._find_foreign()
            for old in (self._result, self._start):
                old.unlink(missing_ok=True)
            port = find_free_port()
            about = {
                "port": port,
                "startedAt": format_now(),
                "claims": {key: str(path) for key, path in claims.items()},
                "foreign": foreign,
            }
            arguments = make_trainer_arguments(
                "run", self._manifest, self.output, {key: str(path) for key, path in claims.items()}, verbose=False
            )
            arguments += ["--port", str(port), "--termination-log", str(self._result)]
            with self.log.open("wb") as log:
                child = subprocess.Popen(
                    [sys.executable, "-m", "hone_trainer", *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    pass_fds=[lock],  # the child keeps the lock
                )
            _children[self.state] = child
            write_atomically(self._start, json.dumps(about | {"pid": child.pid}))
        finally:
            os.close(lock)

    def start_again(self) -> None:
        """Start the trainer as before: it continues from its newest checkpoint."""
        self.start(self.read_manifest(), self.read_claims())

    def stop(self) -> None:
        """Stop the trainer, which saves a checkpoint first, and wait for its end. Raises ClientError after minutes."""
        deadline = time.monotonic() + STOP_SECONDS
        while self.is_running():
            with suppress(ProcessLookupError, KeyError):
                os.kill(int(self._read_start()["pid"]), signal.SIGTERM)
            if time.monotonic() > deadline:
                raise ClientError(f"the trainer of {self.output.name} does not stop", f"See its log: {self.log}")
            time.sleep(POLL_SECONDS)

    def remove(self, *, with_output: bool) -> None:
        """Remove what is known of the job; `with_output`: with all that it saved. Files of others stay."""
        foreign = self._find_foreign()
        shutil.rmtree(self.state, ignore_errors=True)
        if with_output:
            for name in SAVED:
                if name not in foreign:
                    remove_path(self.output / name)
            with suppress(OSError):  # it holds files of others, or was never made
                self.output.rmdir()

    def _find_foreign(self) -> list[str]:
        """Return what the output folder held before the first start; nothing where that was another trainer's."""
        known = self._read_start().get("foreign")
        if isinstance(known, list):
            return known
        is_output = not self.output.is_dir() or (self.output / CHECKPOINTS).exists()
        return [] if is_output else sorted(path.name for path in self.output.iterdir())

    def is_running(self) -> bool:
        """Return whether the trainer runs."""
        if not self.state.is_dir():
            return False
        lock = self._take_lock()
        if lock is not None:
            os.close(lock)
        return lock is None

    def observe(self) -> Observed:
        """Return what is known of the trainer now."""
        start = self._read_start()
        is_running = self.is_running()
        child = _children.get(self.state)
        return Observed(
            is_running,
            str(start.get("startedAt", "")),
            self._fetch_report(start) if is_running else None,
            None if is_running else self._read_result(),
            child.poll() if child else None,
        )

    def read_log(self, *, follow: bool) -> Iterator[str]:
        """Yield the lines of the log; `follow`: until the trainer has ended."""
        return read_lines(self.log, lambda: follow and self.is_running())

    def _take_lock(self) -> int | None:
        """Return the descriptor of the locked file; None when a trainer has it."""
        descriptor = os.open(self.state / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return descriptor

    def _read_start(self) -> dict[str, Any]:
        try:
            found = json.loads(self._start.read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _read_result(self) -> TerminationMessage | None:
        try:
            return TerminationMessage.model_validate_json(self._result.read_bytes())
        except (OSError, ValidationError):
            return None

    def _fetch_report(self, start: Mapping[str, Any]) -> ProgressReport | None:
        try:
            with httpx.Client(trust_env=False, timeout=2.0) as http:
                answer = http.get(f"http://127.0.0.1:{start['port']}/progress")
            return ProgressReport.model_validate_json(answer.content)
        except (httpx.HTTPError, ValidationError, KeyError):
            return None


def find_free_port() -> int:
    """Return a port of this machine that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def format_now() -> str:
    """Return the time as Kubernetes writes it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
