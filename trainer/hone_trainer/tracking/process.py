"""The process of one tracker: `python -m hone_trainer.tracking.process FOLDER NAME OPTIONS`, started by `trackers`.

It reads the journal as it grows and sends it through transformers' callback, again and again while that fails. Its
standard input is one line, the outcome of the run, which is one of OUTCOMES. When the input closes without it, the
training process is gone, and this one ends at once: the next start continues where the tracker is.

It runs when no other program of the session needs the processor, and does not import torch, which the callbacks do not
need: torch would cost some seconds of computing and some hundred MiB.
"""

import base64
import fcntl
import json
import os
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from hone_api.finetunejobs.tracking import SECRET_KEYS
from hone_api.io.terminal import hide_secrets

from hone_trainer.tracking.journal import JournalReader
from hone_trainer.tracking.record import JOURNAL_FILE, RunRecord, SentState, read_record, read_state, write_state

POLL_SECONDS = 1.0
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0
SAVE_SECONDS = 1.0


class OutcomeReader:
    """Reads how the run ended, which the training process reports. `outcome` is empty until then."""

    def __init__(self) -> None:
        self.outcome = ""
        self._event = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()

    def wait(self, seconds: float) -> None:
        """Wait for the outcome, at most so long."""
        self._event.wait(seconds)

    def _read(self) -> None:
        self.outcome = sys.stdin.readline().strip()
        if not self.outcome:
            os._exit(0)
        self._event.set()
        sys.stdin.read()  # until the training process is gone
        os._exit(0)


class Follower:
    """Keeps a tracker up to date with the journal, and its SentState with the tracker."""

    def __init__(self, folder: Path, name: str, options: dict[str, Any], record: RunRecord) -> None:
        self._folder, self._name, self._options, self._record = folder, name, options, record
        self._reader = JournalReader(folder / JOURNAL_FILE)
        self._state = read_state(folder, name, record)
        self._driver: Any = None
        self._has_begun = False
        self._handed_over = 0
        self._saved_at = 0.0

    def follow(self, reader: OutcomeReader) -> None:
        """Send the journal until the run has ended. After its end, a failure is final."""
        pause = FIRST_PAUSE_SECONDS
        while True:
            outcome = reader.outcome
            try:
                self._send_new_lines()
                if outcome:
                    self._end(outcome)
                pause = FIRST_PAUSE_SECONDS
                self._save(replace(self._state, error=""))
                seconds = POLL_SECONDS
            except Exception as error:
                self._save(replace(self._state, error=describe(error)))
                seconds, pause = pause, min(2 * pause, LONGEST_PAUSE_SECONDS)
            if outcome:
                return
            reader.wait(seconds)

    def _send_new_lines(self) -> None:
        if self._driver is None:
            from hone_trainer.tracking.drivers import make_driver

            self._driver = make_driver(self._name, self._options, self._record, self._folder.parent)
        if not self._has_begun:
            self._save(self._driver.begin(self._state))
            self._handed_over, self._has_begun = self._state.sent, True
        for entry in self._reader.read_after(self._handed_over):
            self._driver.send(entry)
            self._handed_over += 1
            if time.monotonic() > self._saved_at + SAVE_SECONDS:
                self._confirm()
        self._confirm()

    def _confirm(self) -> None:
        self._save(replace(self._state, sent=self._driver.count_confirmed(self._handed_over)))

    def _end(self, outcome: str) -> None:
        try:
            self._driver.end(outcome)
        finally:
            self._confirm()

    def _save(self, state: SentState) -> None:
        if state != self._state:
            self._state, self._saved_at = state, time.monotonic()
            write_state(self._folder, self._name, state)


def describe(error: Exception) -> str:
    """Return an exception and its first cause as one line without credentials."""
    cause: BaseException = error
    while further := cause.__cause__ or cause.__context__:
        cause = further
    found = [error] if cause is error else [error, cause]
    return "; ".join(f"{type(each).__name__}: {hide_credentials(' '.join(str(each).split())):.200}" for each in found)


def hide_credentials(text: str) -> str:
    """Return a text without the credentials of this process."""
    found = [os.environ.get(name, "").strip() for keys in SECRET_KEYS.values() for name in keys]
    pair = ":".join(os.environ.get(name, "") for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"))
    found.append(base64.b64encode(pair.encode()).decode())  # as a server that repeats the request's headers shows it
    return hide_secrets(text, found)


def lower_priority() -> None:
    """Compute only when no other program does."""
    with suppress(OSError):
        os.nice(19)
    with suppress(OSError, AttributeError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def lock(path: Path) -> None:
    """Wait until the process of an earlier start is gone. The lock is held until this process ends."""
    fcntl.flock(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644), fcntl.LOCK_EX)


def main(folder: Path, name: str, options: dict[str, Any]) -> None:
    """Send the journal to a tracker until the run ends. Exits without the libraries' own ends, which may wait."""
    lower_priority()
    outcome = OutcomeReader()
    sys.modules["torch"] = None  # type: ignore[assignment]
    with suppress(OSError):
        lock(folder / f"{name}.lock")
    record = read_record(folder)
    if record:
        Follower(folder, name, options, record).follow(outcome)
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3]))
