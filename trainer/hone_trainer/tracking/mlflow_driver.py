"""MLflow: lines are sent many in a request, each with the time at which it was logged.

The server ignores a value that it has already, with the same step and time, so a line that is sent again after a crash
is not doubled. A run is found by its tag when the answer with its id was lost.
"""

import os
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Metric
from mlflow.tracking import MlflowClient
from transformers.integrations.integration_utils import MLflowCallback

from hone_trainer.tracking.drivers import CallbackDriver, RecordedArguments, RecordedModel
from hone_trainer.tracking.journal import Entry
from hone_trainer.tracking.record import RunRecord, SentState

RUN_TAG = "hone.run"
DEFAULT_EXPERIMENT = "Default"
# MLflow refuses more in one request.
MOST_VALUES = 1000
STATUSES = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}


class MLflowDriver:
    """A run on an MLflow server."""

    def __init__(self, options: dict[str, Any], record: RunRecord) -> None:
        self._uri = options["uri"].rstrip("/")
        self._experiment = options.get("experiment") or DEFAULT_EXPERIMENT
        self._record = record
        mlflow.set_tracking_uri(self._uri)
        self._callback = CallbackDriver(MLflowCallback, RecordedArguments(record, record.name), RecordedModel(record))
        self._library = _BatchingMLflow()
        self._callback.callback._ml_flow = self._library

    def begin(self, state: SentState) -> SentState:
        if mlflow.active_run() is None:
            mlflow.start_run(run_id=state.run_id or self._find_or_create_run())
        self._callback.begin()
        run = mlflow.active_run()
        assert run is not None
        found = run.info
        url = f"{self._uri}/#/experiments/{found.experiment_id}/runs/{found.run_id}"
        return SentState(self._record.id, found.run_id, url, state.sent)

    def _find_or_create_run(self) -> str:
        client = MlflowClient()
        experiment = mlflow.set_experiment(self._experiment)
        identity = self._record.id
        runs = client.search_runs([experiment.experiment_id], f"tags.`{RUN_TAG}` = '{identity}'", max_results=1)
        if runs:
            return str(runs[0].info.run_id)
        tags = self._record.tags | {RUN_TAG: identity}
        created = client.create_run(experiment.experiment_id, run_name=self._record.name, tags=tags)
        return str(created.info.run_id)

    def send(self, entry: Entry) -> None:
        self._library.timestamp = round(entry.time * 1000)
        self._callback.log(entry)

    def count_confirmed(self, handed_over: int) -> int:
        self._library.send_batches()
        return handed_over

    def end(self, outcome: str) -> None:
        self._callback.end()
        mlflow.end_run(STATUSES[outcome])


class _BatchingMLflow:
    """The module `mlflow` for the callback: it collects values, at the time of their line, until `send_batches`."""

    def __init__(self) -> None:
        self.timestamp = 0
        self._values: list[Metric] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(mlflow, name)

    def log_metrics(self, metrics: dict[str, float], step: int, synchronous: bool = True) -> None:
        self._values += [Metric(name, value, self.timestamp, step) for name, value in metrics.items()]

    def log_params(self, params: dict[str, Any], synchronous: bool = True) -> None:
        mlflow.log_params(params, synchronous=True)

    def send_batches(self) -> None:
        """Send the collected values. Those that were not confirmed are kept."""
        run = mlflow.active_run()
        while run and self._values:
            MlflowClient().log_batch(run.info.run_id, metrics=self._values[:MOST_VALUES])
            del self._values[:MOST_VALUES]


def make_driver(options: dict[str, Any], record: RunRecord, logs: Path) -> MLflowDriver:
    """Return the driver. Hone retries, so the library need not."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    return MLflowDriver(options, record)
