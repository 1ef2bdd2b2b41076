"""Weights & Biases. Its library sends in a process of its own, which retries; the server is asked what has arrived.

Each line is one row of the run's history, so the number of rows that the server has is the number of lines. Without an
API key the run is written to logs/wandb for `wandb sync`; each start writes it from its first line and removes what
earlier ones wrote, so that no row is doubled.
"""

import base64
import json
import os
import shutil
import time
import urllib.request
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import wandb
from transformers.integrations.integration_utils import WandbCallback

from hone_trainer.tracking.drivers import CallbackDriver, RecordedArguments, RecordedModel
from hone_trainer.tracking.journal import Entry
from hone_trainer.tracking.record import RunRecord, SentState

CLOUD = "https://api.wandb.ai"
KEY = "WANDB_API_KEY"
INIT_SECONDS = 30.0
# Shorter than trackers.CATCH_UP_SECONDS, so that what has arrived can be read afterwards.
FINISH_SECONDS = 14.0
ASK_SECONDS = 10.0
LONGEST_TAG = 64
_COUNT = (
    "query Rows($project: String!, $entity: String, $name: String!) "
    "{ model(name: $project, entityName: $entity) { bucket(name: $name) { historyLineCount } } }"
)


class WandbDriver:
    """A run on a W&B server, or in a folder."""

    def __init__(self, options: dict[str, Any], record: RunRecord, logs: Path) -> None:
        self._options = options
        self._record = record
        self._is_online = KEY in os.environ
        self._folder = Path(mkdtemp(prefix="hone-wandb-")) if self._is_online else logs
        self._callback = CallbackDriver(
            WandbCallback, RecordedArguments(record, record.name, **record.tags), RecordedModel(record)
        )
        self._confirmed = 0
        self._asked_at = 0.0
        self._has_ended = False

    def begin(self, state: SentState) -> SentState:
        earlier = [] if self._is_online else [*self._folder.glob(f"wandb/offline-run-*-{self._record.id}")]
        try:
            run = wandb.run or wandb.init(
                project=self._options["project"],
                entity=self._options.get("entity"),
                id=self._record.id,
                name=self._record.name,
                resume="allow",
                tags=[f"{name}:{value}"[:LONGEST_TAG] for name, value in self._record.tags.items()],
                dir=self._folder,
                mode="online" if self._is_online else "offline",
                settings=wandb.Settings(
                    base_url=self._options.get("baseUrl") or CLOUD,
                    init_timeout=INIT_SECONDS,
                    finish_timeout=FINISH_SECONDS,
                    finish_timeout_raises=True,
                    console="off",
                    silent=True,
                    disable_code=True,
                    disable_git=True,
                    disable_job_creation=True,
                    x_disable_meta=True,
                    x_disable_stats=True,
                    x_save_requirements=False,
                ),
            )
            self._callback.begin()
        except Exception:
            wandb.teardown()  # the run's id counts as in use otherwise
            raise
        for folder in earlier:
            shutil.rmtree(folder)
        self._confirmed = run.starting_step
        return SentState(self._record.id, run.id, run.url if self._is_online else None, self._confirmed)

    def send(self, entry: Entry) -> None:
        self._callback.log(entry)

    def count_confirmed(self, handed_over: int) -> int:
        if not self._is_online:
            return handed_over
        due = self._has_ended or time.monotonic() > self._asked_at + ASK_SECONDS
        if due and self._confirmed < handed_over:
            self._asked_at = time.monotonic()
            self._confirmed = max(self._confirmed, min(self._ask_count(), handed_over))
        return self._confirmed

    def _ask_count(self) -> int:
        """Return the number of rows that the server has."""
        names = {"project": self._options["project"], "entity": self._options.get("entity"), "name": self._record.id}
        base = (self._options.get("baseUrl") or CLOUD).rstrip("/")
        pair = base64.b64encode(f"api:{os.environ[KEY]}".encode()).decode()
        request = urllib.request.Request(
            f"{base}/graphql",
            json.dumps({"query": _COUNT, "variables": names}).encode(),
            {"Content-Type": "application/json", "Authorization": f"Basic {pair}"},
        )
        with urllib.request.urlopen(request, timeout=5) as answer:
            found = json.load(answer)
        return int(found["data"]["model"]["bucket"]["historyLineCount"])

    def end(self, outcome: str) -> None:
        self._callback.end()
        self._has_ended = True
        if wandb.run:
            wandb.run.finish(exit_code=0 if outcome == "finished" else 1)
        if self._is_online:
            shutil.rmtree(self._folder, ignore_errors=True)


def make_driver(options: dict[str, Any], record: RunRecord, logs: Path) -> WandbDriver:
    """Return the driver."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    return WandbDriver(options, record, logs)
