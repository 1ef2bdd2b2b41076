"""Trackio: a database in logs/trackio, which `trackio show` shows. Each line is one row of the run."""

import os
from pathlib import Path
from typing import Any

from transformers.integrations.integration_utils import TrackioCallback

from hone_trainer.tracking.drivers import CallbackDriver, RecordedArguments, RecordedModel
from hone_trainer.tracking.journal import Entry
from hone_trainer.tracking.record import RunRecord, SentState


class TrackioDriver:
    """A run in a database of Trackio."""

    def __init__(self, options: dict[str, Any], record: RunRecord) -> None:
        self._project = options["project"]
        self._name = f"{record.name}-{record.id}"
        self._record = record
        self._callback = CallbackDriver(
            TrackioCallback,
            RecordedArguments(record, self._name, self._project, **record.tags),
            RecordedModel(record),
        )

    def begin(self, state: SentState) -> SentState:
        self._callback.begin()
        return SentState(self._record.id, self._name, None, self._count_rows())

    def send(self, entry: Entry) -> None:
        self._callback.log(entry)

    def count_confirmed(self, handed_over: int) -> int:
        return min(self._count_rows(), handed_over)

    def _count_rows(self) -> int:
        from trackio.sqlite_storage import SQLiteStorage

        return int(SQLiteStorage.get_log_count(self._project, self._name))

    def end(self, outcome: str) -> None:
        self._callback.end()


def make_driver(options: dict[str, Any], record: RunRecord, logs: Path) -> TrackioDriver:
    """Return the driver. Trackio reads the folder when it is imported."""
    os.environ["TRACKIO_DIR"] = str(logs / "trackio")
    return TrackioDriver(options, record)
