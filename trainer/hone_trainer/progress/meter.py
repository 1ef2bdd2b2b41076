"""Reports a download or an upload: bytes, rate and time left, a line every few seconds."""

import threading
import time
from collections.abc import Callable

from hone_api.byte_sizes import format_bytes

INTERVAL_SECONDS = 10.0


class Meter:
    """Counts the bytes of a transfer, from several threads. `present` bytes are there from an earlier start.

    `total` may grow while more files are found.
    """

    def __init__(
        self,
        total: int,
        present: int,
        note: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
        *,
        verb: str = "downloaded",
    ) -> None:
        self.total, self._present, self._note, self._clock, self._verb = total, present, note, clock, verb
        self._new = 0
        self._lock = threading.Lock()
        self._began = self._noted = clock()

    def count_present(self, count: int) -> None:
        """Count bytes that were there before, which are no part of the rate."""
        with self._lock:
            self._present += count

    def add(self, count: int) -> None:
        """Count bytes; a negative number takes back what is downloaded again."""
        with self._lock:
            self._new += count
            now = self._clock()
            is_due = now - self._noted >= INTERVAL_SECONDS
            if is_due:
                self._noted = now
                line = self._format_line(now)
        if is_due:
            self._note(line)

    def _format_line(self, now: float) -> str:
        done = self._present + self._new
        rate = max(self._new, 0) / max(now - self._began, 1e-3)
        left = f", {round((self.total - done) / rate)} s left" if rate else ""
        return f"{self._verb} {format_bytes(done)} of {format_bytes(self.total)}, {format_bytes(rate)}/s{left}"
