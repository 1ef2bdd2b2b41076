"""Standard streams on which no write can end the program.

A run's log is for people. Its reader may exit (`hone run … | head`), its terminal may close, its disk may be full. None
of this is a reason to lose the run, whose outcome is in the termination log and the exit code. `terminal` installs
these streams at the start of a program, so that the output of every library passes through them, too.
"""

import io
import os
import sys
from contextlib import suppress
from typing import Any, TextIO


def open_missing_descriptors() -> None:
    """Open /dev/null as each of the descriptors 0, 1 and 2 that is closed.

    Otherwise the next opened file would get the number, and the output of C libraries would be written into it.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
            os.set_inheritable(opened, True)


def make_forgiving(stream: TextIO | None, descriptor: int) -> TextIO:
    """Return a stream for the descriptor to replace a standard stream; text that can't be written is lost."""
    if stream is not None:
        with suppress(OSError, ValueError):
            stream.flush()
    file = io.BufferedWriter(_ForgivingFile(descriptor, "w", closefd=False))
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return io.TextIOWrapper(file, encoding=encoding, errors="backslashreplace", line_buffering=True)


def is_standard(stream: TextIO | None) -> bool:
    """Return whether it is a stream of the process itself, or a closed one, rather than a test's."""
    return stream is None or stream is sys.__stdout__ or stream is sys.__stderr__


class _ForgivingFile(io.FileIO):
    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        try:
            written = super().write(data)
        except OSError:
            return size
        return size if written is None else written  # None: the descriptor does not block and is full
