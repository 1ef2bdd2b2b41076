"""Signals to stop: SIGTERM, SIGINT, and SIGHUP, which a closed terminal sends.

Outside training there is nothing to lose, so a signal ends the run at once. During training it only sets a flag, and
the trainer saves a checkpoint at the end of the step. Imported before torch, since Python as process 1 ignores SIGTERM
until a handler is set.
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from hone_api.exit_codes import INTERRUPTED_EXIT_CODE

# Seconds that a library has to release what it waits for (for example a download) after the run must end at once.
RELEASE_GRACE_SECONDS = 5.0


class Interrupted(BaseException):
    """Ends the run at once. Not an Exception, so that no library handles it as its own failure."""


class EvaluationInterrupted(Interrupted):
    """Ends an evaluation between two batches."""


class StopSignal:
    """The handler of signals to stop. `is_requested` is whether one has arrived."""

    def __init__(self) -> None:
        self.is_requested = False
        self._is_deferred = False
        self._process_id = os.getpid()

    def install_handlers(self, at_last: Callable[[], None] = lambda: None) -> None:
        """Install the handlers, in the main thread. `at_last` is called when RELEASE_GRACE_SECONDS has run out.

        A SIGHUP that the parent ignores, as nohup does, stays ignored.
        """

        def leave(number: int, frame: FrameType | None) -> None:
            at_last()
            os._exit(INTERRUPTED_EXIT_CODE)

        signal.signal(signal.SIGALRM, leave)
        signal.signal(signal.SIGTERM, self._handle)
        signal.signal(signal.SIGINT, self._handle)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            signal.signal(signal.SIGHUP, self._handle_hang_up)

    def ignore_signals(self) -> None:
        """Ignore signals from now on: the outcome is settled."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    @contextmanager
    def defer_signals(self) -> Iterator[None]:
        """Within the context, let a signal only set `is_requested`; let a second one end the run."""
        self._is_deferred = True
        try:
            yield
        finally:
            self._is_deferred = False

    @contextmanager
    def allow_immediate_stop(self) -> Iterator[None]:
        """Within `defer_signals`, let a signal end the run at once after all, since there is nothing to lose."""
        self._is_deferred = False
        if self.is_requested:
            raise Interrupted
        try:
            yield
        finally:
            self._is_deferred = True

    def _handle_hang_up(self, number: int, frame: FrameType | None) -> None:
        """Handle SIGHUP; ignore repeated ones, since kernel and shell both send one when a terminal closes."""
        if not self.is_requested:
            self._handle(number, frame)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process_id:  # a data loader's worker that inherited the handler
            os._exit(128 + number)
        again, self.is_requested = self.is_requested, True
        if again or not self._is_deferred:
            signal.setitimer(signal.ITIMER_REAL, RELEASE_GRACE_SECONDS)
            raise Interrupted
