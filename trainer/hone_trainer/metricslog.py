"""logs/metrics.jsonl: one JSON line for each logged step, each step once even after resumes."""

import json
import math
from pathlib import Path
from typing import Any


class MetricsLog:
    """Appends to the file. What training and evaluation log at one step becomes one line."""

    def __init__(self, path: Path, resumed_step: int) -> None:
        """Open the file, dropping steps after `resumed_step`, which will be trained anew."""
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for line in _lines(path) if _step(line) <= resumed_step]
        path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        self._file = path.open("a", encoding="utf-8")
        self._pending: dict[str, Any] = {}

    def add(self, step: int, values: dict[str, Any]) -> None:
        """Log values at a step; they are written when a later step, flush() or close() comes."""
        if self._pending.get("step") != step:
            self.flush()
        self._pending = {**self._pending, "step": step, **values}

    def flush(self) -> None:
        """Write what is pending. Nothing more may be added at its step."""
        if self._pending:
            self._file.write(json.dumps({name: _finite(value) for name, value in self._pending.items()}) + "\n")
            self._file.flush()
            self._pending = {}

    def close(self) -> None:
        self.flush()
        self._file.close()


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value  # JSON has no NaN


def _step(line: str) -> float:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):  # a line whose writing was cut short
        return float("inf")
