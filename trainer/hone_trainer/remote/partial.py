"""A file that is being downloaded in pieces, and a journal of the pieces that are complete.

Input are ranges of bytes in any order, from several threads. A piece is on the disk before the journal names it, so
that what a killed or crashed download has left is continued and never trusted too much.
"""

import hashlib
import os
import re
import threading
from dataclasses import dataclass
from pathlib import Path

from hone_trainer.remote.objects import Checksums, RemoteObject

PIECE_BYTES = 16 * 1024**2
_BLOCK = 1024**2
# A line of the journal. Its end shows that it is complete, its begin that no cut line is before it.
_LINE = re.compile(r"#([0-9]{1,12});")


@dataclass(frozen=True)
class Difference:
    """How a file differs from what the store knows of it. `is_of_etag`: its MD5 is not what the ETag looks like."""

    text: str
    is_of_etag: bool = False


class PartialFile:
    """One object's file below `folder` and its journal below `journals`."""

    def __init__(self, wanted: RemoteObject, folder: Path, journals: Path, piece_bytes: int = PIECE_BYTES) -> None:
        self.wanted = wanted
        self.path = folder / wanted.name
        self._journal = journals / hashlib.sha256(wanted.name.encode()).hexdigest()
        self._lock = threading.Lock()
        self._step = piece_bytes if wanted.has_ranges else max(wanted.size, 1)
        self._count = -(-wanted.size // self._step)
        self._done = self._read_journal() if wanted.validator else set()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab"):
            pass
        if self.path.stat().st_size > wanted.size:
            os.truncate(self.path, wanted.size)

    @property
    def missing(self) -> list[tuple[int, int]]:
        """The ranges that are still to be downloaded."""
        return [self._get_range(number) for number in range(self._count) if number not in self._done]

    @property
    def kept_bytes(self) -> int:
        """The bytes that need no download."""
        return sum(end - start for start, end in map(self._get_range, self._done))

    def open(self) -> int:
        """Open the file to write into it, and return its descriptor."""
        return os.open(self.path, os.O_WRONLY)

    def complete(self, descriptor: int, piece: tuple[int, int]) -> None:
        """Record that a piece is written. Raises OSError."""
        os.fsync(descriptor)
        with self._lock:
            number = piece[0] // self._step
            with self._journal.open("a") as journal:
                journal.write(f"#{number};\n")
            self._done.add(number)

    def find_difference(self, known: Checksums) -> Difference | None:
        """Return how the complete file differs from what the store knows of it; None when it does not."""
        size = self.path.stat().st_size
        if size != self.wanted.size:
            return Difference(f"has {size} bytes where {self.wanted.size} were listed")
        for name, wanted in (("sha256", known.sha256), ("md5", known.md5)):
            if wanted:
                found = self._digest(name)
                text = f"has {name} {found} where the store has {wanted}"
                return None if found == wanted else Difference(text, name == "md5")
        return None

    def forget(self) -> None:
        """Start again: none of the bytes can be trusted."""
        self._journal.unlink(missing_ok=True)
        os.truncate(self.path, 0)
        self._done = set()

    def _get_range(self, number: int) -> tuple[int, int]:
        start = number * self._step
        return start, min(start + self._step, self.wanted.size)

    def _digest(self, name: str) -> str:
        digest = hashlib.new(name, usedforsecurity=False)
        with self.path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
        return digest.hexdigest()

    def _read_journal(self) -> set[int]:
        if not self._journal.is_file() or not self.path.is_file():
            return set()
        size = self.path.stat().st_size
        numbers = {int(found) for found in _LINE.findall(self._journal.read_text(errors="replace"))}
        return {number for number in numbers if number < self._count and self._get_range(number)[1] <= size}
