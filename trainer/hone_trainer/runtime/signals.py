"""Signals to stop: SIGTERM, SIGINT, and SIGHUP, which a closed terminal sends.

Outside training there is nothing to lose, so a signal ends the run at once. During training it only sets a flag, and
the
trainer saves a checkpoint at the end of the step. Imported before torch, since Python as process 1 ignores SIGTERM
until
a handler is set.
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from hone_api.reasons import INTERRUPTED_EXIT_CODE

# Seconds that a library has to release what it waits for (for example a download) after the run must end at once.
PATIENCE = 5.0


class Interrupted(BaseException):
    """Ends the run at once. Not an Exception, so that no library handles it as its own failure."""


class EvaluationInterrupted(Interrupted):
    """Ends an evaluation between two batches."""


class Stop:
    """The handler of signals to stop. `requested` is whether one has arrived."""

    def __init__(self) -> None:
        self.requested = False
        self._deferred = False
        self._process = os.getpid()

    def listen(self, at_last: Callable[[], None] = lambda: None) -> None:
        """Install the handlers, in the main thread. `at_last` is called when PATIENCE has run out.

        A SIGHUP that the parent ignores, as nohup does, stays ignored.
        """

        def leave(number: int, frame: FrameType | None) -> None:
            at_last()
            os._exit(INTERRUPTED_EXIT_CODE)

        signal.signal(signal.SIGALRM, leave)
        signal.signal(signal.SIGTERM, self._handle)
        signal.signal(signal.SIGINT, self._handle)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            signal.signal(signal.SIGHUP, self._hang_up)

    def ignore(self) -> None:
        """Ignore signals from now on: the outcome is settled."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Within the context, let a signal only set `requested`; let a second one end the run."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within `deferred`, let a signal end the run at once after all, since there is nothing to lose."""
        self._deferred = False
        if self.requested:
            raise Interrupted
        try:
            yield
        finally:
            self._deferred = True

    def _hang_up(self, number: int, frame: FrameType | None) -> None:
        """Handle SIGHUP; ignore repeated ones, since kernel and shell both send one when a terminal closes."""
        if not self.requested:
            self._handle(number, frame)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a data loader's worker that inherited the handler
            os._exit(128 + number)
        again, self.requested = self.requested, True
        if again or not self._deferred:
            signal.setitimer(signal.ITIMER_REAL, PATIENCE)
            raise Interrupted
