"""A file that is being downloaded in pieces, and a journal of the pieces that are complete.

Input are ranges of bytes in any order, from several threads. A piece is on the disk before the journal names it, so
that what a killed or crashed download has left is continued and never trusted too much.
"""

import hashlib
import os
import threading
from pathlib import Path

from hone_trainer.remote.objects import Checksums, RemoteObject

PIECE_BYTES = 16 * 1024**2
_BLOCK = 1024**2


class PartialFile:
    """One object's file below `folder` and its journal below `journals`."""

    def __init__(self, wanted: RemoteObject, folder: Path, journals: Path, piece_bytes: int = PIECE_BYTES) -> None:
        self.wanted = wanted
        self.path = folder / wanted.name
        self._journal = journals / hashlib.sha256(wanted.name.encode()).hexdigest()
        self._lock = threading.Lock()
        self._step = piece_bytes if wanted.has_ranges else max(wanted.size, 1)
        starts = range(0, wanted.size, self._step)
        self._pieces = [(start, min(start + self._step, wanted.size)) for start in starts]
        self._done = self._read_journal() if wanted.validator else set()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab"):
            pass
        if self.path.stat().st_size > wanted.size:
            os.truncate(self.path, wanted.size)

    @property
    def missing(self) -> list[tuple[int, int]]:
        """The ranges that are still to be downloaded."""
        return [piece for number, piece in enumerate(self._pieces) if number not in self._done]

    @property
    def kept_bytes(self) -> int:
        """The bytes that need no download."""
        return self.wanted.size - sum(end - start for start, end in self.missing)

    def open(self) -> int:
        """Open the file to write into it, and return its descriptor."""
        return os.open(self.path, os.O_WRONLY)

    def complete(self, descriptor: int, piece: tuple[int, int]) -> None:
        """Record that a piece is written. Raises OSError."""
        os.fsync(descriptor)
        with self._lock:
            number = piece[0] // self._step
            with self._journal.open("a") as journal:
                journal.write(f"{number}\n")
            self._done.add(number)

    def find_difference(self, known: Checksums) -> str | None:
        """Return how the complete file differs from what the store knows of it; None when it does not."""
        size = self.path.stat().st_size
        if size != self.wanted.size:
            return f"has {size} bytes where {self.wanted.size} were listed"
        for name, wanted in (("sha256", known.sha256), ("md5", known.md5)):
            if wanted:
                found = self._digest(name)
                return None if found == wanted else f"has {name} {found} where the store has {wanted}"
        return None

    def forget(self) -> None:
        """Start again: none of the bytes can be trusted."""
        self._journal.unlink(missing_ok=True)
        os.truncate(self.path, 0)
        self._done = set()

    def _digest(self, name: str) -> str:
        digest = hashlib.new(name, usedforsecurity=False)
        with self.path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
        return digest.hexdigest()

    def _read_journal(self) -> set[int]:
        if not self._journal.is_file() or not self.path.is_file():
            return set()
        lines = self._journal.read_text(errors="replace").split("\n")[:-1]  # the last one may be cut
        size = self.path.stat().st_size
        numbers = {int(line) for line in lines if line.isascii() and line.isdigit()}
        return {number for number in numbers if number < len(self._pieces) and self._pieces[number][1] <= size}
