"""What later starts need to continue the same run: who it is (`RunRecord`), and what a tracker has (`SentState`).

Both are files in logs/tracking. They hold no credentials.
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from hone_api.io.durable_files import remove_path, write_atomically
from pydantic import TypeAdapter, ValidationError

JOURNAL_FILE = "journal.jsonl"
RECORD_FILE = "run.json"

Found = TypeVar("Found")


@dataclass(frozen=True)
class RunRecord:
    """A run, as its first start described it: MLflow refuses parameters that change.

    `arguments`, `model` and `adapter` are the dictionaries of TrainingArguments, the model's and PEFT's configuration.
    """

    id: str
    name: str
    tags: dict[str, str]
    arguments: dict[str, Any]
    model: dict[str, Any]
    adapter: dict[str, Any] | None
    parameters: int


@dataclass(frozen=True)
class SentState:
    """What a tracker has of a run: the first `sent` lines of the journal. `error` is why it does not have more."""

    run: str
    run_id: str | None = None
    url: str | None = None
    sent: int = 0
    error: str = ""


def keep_record(folder: Path, record: RunRecord) -> RunRecord:
    """Return the run of an earlier start when its tags are the same; else begin the new one, without its files."""
    found = read_record(folder)
    if found and found.tags == record.tags:
        return found
    remove_path(folder)
    folder.mkdir(parents=True)
    write_atomically(folder / RECORD_FILE, json.dumps(asdict(record)))
    return record


def read_record(folder: Path) -> RunRecord | None:
    """Return the run; None where none has begun."""
    return _read(folder / RECORD_FILE, RunRecord)


def read_state(folder: Path, name: str, record: RunRecord) -> SentState:
    """Return what a tracker has of the run."""
    found = _read(folder / f"{name}.json", SentState)
    return found if found and found.run == record.id else SentState(record.id)


def write_state(folder: Path, name: str, state: SentState) -> None:
    """Write what a tracker has."""
    write_atomically(folder / f"{name}.json", json.dumps(asdict(replace(state, error=state.error[:500]))))


def _read(path: Path, kind: type[Found]) -> Found | None:
    try:
        return TypeAdapter(kind).validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None
