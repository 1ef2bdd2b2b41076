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

from hone_trainer.distributed.coordinator_client import Member
from hone_trainer.distributed.ranks import Place
from hone_trainer.distributed.results import Ending, Word, decide
from hone_trainer.runtime.options import Options
from hone_trainer.runtime.signals import Stop

# Seconds that the other processes have left once one has ended: if they do not end with it, they wait for it forever.
PATIENCE = 10.0
_POLL = 0.05


class Worker:
    """A running training process."""

    def __init__(self, place: Place, options: Options, scratch: Path) -> None:
        self._rank = place.rank
        self._word = scratch / f"rank-{place.rank}.json"
        self._ended = 0.0
        # The worker exits when the pipe closes, as it does when this process is gone. It has a session of its own, so
        # that Ctrl-C reaches only the launcher.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "hone_trainer.worker", str(self._word), *options.arguments()],
            stdin=subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, **place.to_environ(), "TMPDIR": str(scratch)},
        )

    @property
    def running(self) -> bool:
        if not self._ended and self._process.poll() is not None:
            self._ended = time.time()
        return not self._ended

    def signal(self, number: int) -> None:
        if self.running:
            self._process.send_signal(number)

    def ending(self) -> Ending:
        """Return how the process ended; kill it if it has not."""
        code = None if self.running else self._process.returncode
        self._process.kill()
        self._process.wait()
        if self._process.stdin:
            self._process.stdin.close()
        try:
            word = Word.model_validate_json(self._word.read_bytes())
            at = self._word.stat().st_mtime
        except (OSError, ValidationError):
            word, at = None, self._ended or time.time()
        return Ending(self._rank, code, at, word)


def launch(places: list[Place], options: Options, stop: Stop, member: Member | None) -> Word:
    """Run this node's processes to their end and return the result. Raises Interrupted at the second signal to stop."""
    with TemporaryDirectory(prefix="hone-") as scratch, stop.deferred():
        workers: list[Worker] = []
        endings: list[Ending] = []
        try:
            workers.extend(Worker(place, options, Path(scratch)) for place in places)
            _wait(workers, stop, member)
        finally:
            endings.extend(worker.ending() for worker in workers)
        word = decide(endings)
        return member.settle(word) if member else word


def _wait(workers: list[Worker], stop: Stop, member: Member | None) -> None:
    """Wait until all processes have ended, or the others still run PATIENCE seconds after one, here or elsewhere,
    ended.
    """
    told = False
    deadline = float("inf")
    while any(worker.running for worker in workers) and time.monotonic() < deadline:
        over = bool(member and member.over)
        if deadline == float("inf") and (over or not all(worker.running for worker in workers)):
            deadline = time.monotonic() + PATIENCE
            if member and not over:
                member.ending()
        if stop.requested and not told:
            told = True
            for worker in workers:
                worker.signal(signal.SIGTERM)
        time.sleep(_POLL)
