"""logs/metrics.jsonl: one JSON line for each logged step, each step once, even after resumes."""

import json
import math
import os
from pathlib import Path
from typing import Any

from hone_api.io.durable_files import write_atomically


class MetricsLog:
    """Appends to the file. The values that training and evaluation log at the same step become one line."""

    def __init__(self, path: Path, resumed_step: int) -> None:
        """Open the file, and drop the steps after `resumed_step`, which will be trained again."""
        path.parent.mkdir(parents=True, exist_ok=True)
        kept_lines = [values for values in _read_lines(path) if values["step"] <= resumed_step]
        write_atomically(path, "".join(map(_format_line, kept_lines)))
        self._path = path
        self._file = path.open("a", encoding="utf-8")
        self._written = kept_lines[-1] if kept_lines else {}
        self._pending = self._written

    @property
    def last(self) -> dict[str, Any]:
        """The newest line of the file; empty when there is none."""
        return self._written

    def add(self, step: int, values: dict[str, Any]) -> None:
        """Log values at a step; they are written at a later step, flush() or close()."""
        if self._pending.get("step") != step:
            self._write()
            self._pending = {}
        finite = {name: _replace_non_finite(value) for name, value in values.items()}
        self._pending = {**self._pending, "step": step, **finite}

    def flush(self) -> None:
        """Force the logged values to the disk."""
        self._write()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._write()
        self._file.close()

    def _write(self) -> None:
        if self._pending == self._written:
            return
        if self._pending.get("step") == self._written.get("step"):  # an evaluation that came after a flush
            self._file.close()
            earlier_lines = [values for values in _read_lines(self._path) if values["step"] != self._pending["step"]]
            write_atomically(self._path, "".join(map(_format_line, [*earlier_lines, self._pending])))
            self._file = self._path.open("a", encoding="utf-8")
        else:
            self._file.write(_format_line(self._pending))
            self._file.flush()
        self._written = self._pending


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the complete lines."""
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):  # the line was cut short
            continue
        if isinstance(values, dict) and type(values.get("step")) is int and all(map(_is_figure, values.values())):
            found.append(values)
    return found


def _is_figure(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _format_line(values: dict[str, Any]) -> str:
    return json.dumps(values) + "\n"


def _replace_non_finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value  # JSON has no NaN
