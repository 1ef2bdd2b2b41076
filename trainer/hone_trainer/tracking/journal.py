"""logs/tracking/journal.jsonl: each line that training logged, once, in order, even after resumes.

Training appends to it and never waits for a reader. A line is identified by its step and its names, so a step that is
trained again after a resume is not added again. The number of a line is the same in all starts: a tracker that has the
first N lines continues with the next.
"""

import json
import math
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hone_api.io.durable_files import write_atomically
from pydantic import TypeAdapter, ValidationError


@dataclass(frozen=True)
class Entry:
    """A logged line; `time` is in seconds since 1970."""

    step: int
    epoch: float
    time: float
    values: dict[str, float]


_ENTRY = TypeAdapter(Entry)


class Journal:
    """Appends to the file. A disk that fails ends the journal, not the training: `error` then says why."""

    def __init__(self, path: Path) -> None:
        """Open the file, without a last line that was cut short."""
        self.error = ""
        content = path.read_bytes() if path.exists() else b""
        entries = _parse_lines(content)
        complete = content[: content.rfind(b"\n") + 1]
        if complete != content:
            write_atomically(path, complete)
        self.count = len(entries)
        self._known = {(entry.step, frozenset(entry.values)) for entry in entries}
        self._file = path.open("a", encoding="utf-8")

    def add(self, step: int, epoch: float, values: dict[str, Any]) -> None:
        """Append the numbers among the values, unless an earlier start has."""
        found = {name: float(value) for name, value in values.items() if _is_finite(value)}
        key = (step, frozenset(found))
        if not found or key in self._known or self.error:
            return
        self._known.add(key)
        try:
            self._file.write(json.dumps(asdict(Entry(step, epoch, round(time.time(), 3), found))) + "\n")
            self._file.flush()
            self.count += 1
        except OSError as error:
            self.error = f"the journal can't be written: {error.strerror}"

    def sync(self) -> None:
        """Force the lines to the disk: after a resume, the steps before the checkpoint are not logged again."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            self.error = self.error or f"the journal can't be written: {error.strerror}"


class JournalReader:
    """Reads the lines of a growing file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._entries: list[Entry] = []

    def read_after(self, count: int) -> list[Entry]:
        """Return the entries after the first `count`."""
        if self._path.exists():
            with self._path.open("rb") as file:
                file.seek(self._offset)
                content = file.read()
            complete = content[: content.rfind(b"\n") + 1]
            self._offset += len(complete)
            self._entries += _parse_lines(complete)
        return self._entries[count:]


def count_entries(path: Path) -> int:
    """Return the number of complete lines of a journal; 0 for one that can't be read."""
    try:
        return len(JournalReader(path).read_after(0))
    except OSError:
        return 0


def _parse_lines(content: bytes) -> list[Entry]:
    found = []
    for line in content.split(b"\n")[:-1]:
        try:
            found.append(_ENTRY.validate_json(line))
        except ValidationError:  # the disk was full
            continue
    return found


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
