"""The side of the training process: the journal, the trackers' processes, and the report of what they have.

`pipeline` adds `callback` to the trainer. Training only writes lines to the journal. What the processes have is read
from their files when somebody asks. At the end they have CATCH_UP_SECONDS to send the rest, while the artifact is
written; a tracker that does not manage in this time is left behind, and a later start sends what it lacks.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from hone_api.artifacts.trainer_reports import TrackerReport
from hone_api.finetunejobs.spec import FineTuneJobSpec
from hone_api.finetunejobs.tracking import SECRET_KEYS
from hone_api.layout import TRACKING

from hone_trainer.inputs.manifest import JobInputs
from hone_trainer.runtime.signals import Interrupted
from hone_trainer.tracking.journal import Journal, count_entries
from hone_trainer.tracking.record import JOURNAL_FILE, RunRecord, keep_record, read_record, read_state
from hone_trainer.tracking.requirements import read_credentials

# Of this time, little is lost: the trackers send while the artifact is written.
CATCH_UP_SECONDS = 20.0
# After a signal, the time before the process is killed is short: less than signals.RELEASE_GRACE_SECONDS.
STOP_SECONDS = 3.0


class TrackerProcess:
    """The running process of one tracker."""

    def __init__(self, folder: Path, name: str, options: dict[str, Any], credentials: dict[str, str]) -> None:
        self.name = name
        self._is_over = False
        secret = {key for keys in SECRET_KEYS.values() for key in keys}
        environ = {key: value for key, value in os.environ.items() if key not in secret}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "hone_trainer.tracking.process", str(folder), name, json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # Not a session of its own: outside of a container, Linux gives each session the same share of the
            # processors, and the process's low priority would only count within it.
            process_group=0,
            env=environ | credentials | {"OMP_NUM_THREADS": "1"},
        )

    @property
    def exit_code(self) -> int | None:
        return self._process.poll()

    def send_outcome(self, outcome: str) -> None:
        """Report how the run ended."""
        assert self._process.stdin
        with suppress(OSError):
            self._process.stdin.write(f"{outcome}\n".encode())
            self._process.stdin.flush()

    def wait_until(self, deadline: float) -> None:
        """Wait for the process to end, and kill it at the deadline. Later calls do nothing."""
        if self._is_over:
            return
        try:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(max(0.0, deadline - time.monotonic()))
        finally:
            self._is_over = True
            with suppress(OSError):  # including what the library has started
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


class Trackers:
    """The trackers of a run, as a context manager; none when the spec has none."""

    def __init__(self, root: Path, spec: FineTuneJobSpec, credentials: dict[str, dict[str, str]]) -> None:
        self._folder = root / TRACKING
        self._options: dict[str, dict[str, Any]] = spec.tracking.to_wire() if spec.tracking else {}
        self._credentials = credentials
        self._processes: list[TrackerProcess] = []
        self._record: RunRecord | None = None
        self.journal: Journal | None = None
        self._outcome = ""
        self._error = ""
        self._deadline = 0.0
        self._has_waited = False

    def start(self, record: RunRecord) -> None:
        """Start the processes for a new run, or for the one that an earlier start has begun.

        What the system refuses is reported, and training continues without trackers.
        """
        if not self._options:
            return
        self._record = record
        try:
            self._record = keep_record(self._folder, record)
            self.journal = Journal(self._folder / JOURNAL_FILE)
        except OSError as error:
            self._note_failure(error)
        else:
            self._processes = self._launch_all(self._options)

    def resend(self) -> None:
        """Start the processes once more for a run that has ended, if a tracker lacks some of it, and wait for them."""
        self._record = read_record(self._folder) if self._options else None
        if any(report.unsent for report in self.make_reports() or []):
            self._processes = self._launch_all(self._options)
            self.end("finished")
            self.wait()

    def _launch_all(self, names: Iterable[str]) -> list[TrackerProcess]:
        """Start the processes of trackers. What the system refuses, such as for lack of memory, is reported."""
        found = []
        for name in names:
            try:
                found.append(self._launch(name))
            except OSError as error:
                self._note_failure(error)
        return found

    def _launch(self, name: str) -> TrackerProcess:
        return TrackerProcess(self._folder, name, self._options[name], self._credentials.get(name, {}))

    def _note_failure(self, error: OSError) -> None:
        self._error = f"The trackers can't be started: {error.strerror}."

    def end(self, outcome: str) -> None:
        """Report how training ended. The processes send the rest meanwhile, until `wait`."""
        if self._outcome:
            return
        self._outcome = outcome
        self._deadline = time.monotonic() + (CATCH_UP_SECONDS if outcome == "finished" else STOP_SECONDS)
        if outcome == "finished":  # one that was killed, such as for lack of memory, gets a second chance
            ended = [each.name for each in self._processes if each.exit_code is not None]
            running = [each for each in self._processes if each.exit_code is None]
            self._processes = running + self._launch_all(ended)
        for process in self._processes:
            process.send_outcome(outcome)

    def wait(self) -> None:
        """Wait until the trackers have everything, or their time is over."""
        for process in self._processes:
            process.wait_until(self._deadline)
        self._has_waited = True

    def make_reports(self) -> list[TrackerReport] | None:
        """Return how far each tracker is; None without trackers."""
        if not self._record:
            return None
        record = self._record
        count = self.journal.count if self.journal else count_entries(self._folder / JOURNAL_FILE)
        return [self._make_report(name, record, count) for name in self._options]

    def _make_report(self, name: str, record: RunRecord, count: int) -> TrackerReport:
        state = read_state(self._folder, name, record)
        unsent = max(0, count - state.sent)
        error = self._error or (self.journal.error if self.journal else "") or state.error
        if unsent and not error and self._has_waited:
            error = f"The tracker did not answer within {CATCH_UP_SECONDS:.0f} s after training."
        return TrackerReport(name=name, url=state.url, unsent=unsent, message=error or None)

    def __enter__(self) -> "Trackers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.end("interrupted" if isinstance(error, Interrupted) else "failed" if error else "finished")
            self.wait()
        finally:
            for process in self._processes:
                process.wait_until(0.0)


def open_trackers(inputs: JobInputs, root: Path) -> Trackers:
    """Return the trackers of a job. Raises HoneError InvalidSpec for credentials that are missing."""
    return Trackers(root, inputs.job.spec, read_credentials(inputs))


def describe_report(report: TrackerReport) -> str:
    """Return a line for a person."""
    where = report.url or "no page"
    if not report.unsent:
        return f"{report.name}: {where}"
    return f"{report.name}: {where}; {report.unsent} logged lines were not sent: {report.message}"
