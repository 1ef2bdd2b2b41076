"""Start the training processes of this node, forward signals, and decide how the run ended.

Each process is a `hone_trainer.worker` with torchrun's environment variables. Its result comes back in a file;
`results`
selects the result of the node. With several nodes, `coordinator_client` connects the launchers.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from pydantic import ValidationError

from hone_trainer.distributed.coordinator_client import CoordinatorClient
from hone_trainer.distributed.ranks import Rank
from hone_trainer.distributed.results import ProcessExit, WorkerResult, pick_run_result
from hone_trainer.runtime.options import RunOptions
from hone_trainer.runtime.signals import StopSignal

# Seconds that the other processes have left once one has ended: if they do not end with it, they wait for it forever.
SHUTDOWN_GRACE_SECONDS = 10.0
_POLL_SECONDS = 0.05


class WorkerProcess:
    """A running training process."""

    def __init__(self, rank: Rank, options: RunOptions, scratch: Path) -> None:
        self._rank = rank.rank
        self._result_file = scratch / f"rank-{rank.rank}.json"
        self._ended_at = 0.0
        # The worker exits when the pipe closes, as it does when this process is gone. It has a session of its own, so
        # that Ctrl-C reaches only the launcher.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "hone_trainer.worker", str(self._result_file), *options.to_arguments()],
            stdin=subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, **rank.to_environ(), "TMPDIR": str(scratch)},
        )

    @property
    def is_running(self) -> bool:
        if not self._ended_at and self._process.poll() is not None:
            self._ended_at = time.time()
        return not self._ended_at

    def send_signal(self, number: int) -> None:
        if self.is_running:
            self._process.send_signal(number)

    def end_process(self) -> ProcessExit:
        """Return how the process ended; kill it if it has not."""
        code = None if self.is_running else self._process.returncode
        self._process.kill()
        self._process.wait()
        if self._process.stdin:
            self._process.stdin.close()
        try:
            result = WorkerResult.model_validate_json(self._result_file.read_bytes())
            at = self._result_file.stat().st_mtime
        except (OSError, ValidationError):
            result, at = None, self._ended_at or time.time()
        return ProcessExit(self._rank, code, at, result)


def launch_workers(
    ranks: list[Rank], options: RunOptions, stop: StopSignal, coordinator: CoordinatorClient | None
) -> WorkerResult:
    """Run this node's processes to their end and return the result. Raises Interrupted at the second signal to stop."""
    with TemporaryDirectory(prefix="hone-") as scratch, stop.defer_signals():
        workers: list[WorkerProcess] = []
        endings: list[ProcessExit] = []
        try:
            workers.extend(WorkerProcess(rank, options, Path(scratch)) for rank in ranks)
            _wait_for_workers(workers, stop, coordinator)
        finally:
            endings.extend(worker.end_process() for worker in workers)
        result = pick_run_result(endings)
        return coordinator.resolve_result(result) if coordinator else result


def _wait_for_workers(workers: list[WorkerProcess], stop: StopSignal, coordinator: CoordinatorClient | None) -> None:
    """Wait until all processes have ended, or the others still run SHUTDOWN_GRACE_SECONDS after one, here or elsewhere,
    ended.
    """
    is_stop_forwarded = False
    deadline = float("inf")
    while any(worker.is_running for worker in workers) and time.monotonic() < deadline:
        over = bool(coordinator and coordinator.end_reason)
        if deadline == float("inf") and (over or not all(worker.is_running for worker in workers)):
            deadline = time.monotonic() + SHUTDOWN_GRACE_SECONDS
            if coordinator and not over:
                coordinator.report_exit()
        if stop.is_requested and not is_stop_forwarded:
            is_stop_forwarded = True
            for worker in workers:
                worker.send_signal(signal.SIGTERM)
        time.sleep(_POLL_SECONDS)
