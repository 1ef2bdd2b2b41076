"""What a tracker's process calls, and the objects that stand for the training run in transformers' callbacks.

`process` calls `begin` until it succeeds, then `send` for each line. The callbacks get `RecordedArguments` and
`RecordedModel` instead of the real ones, which live in the training process.
"""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from transformers.trainer_callback import TrainerControl, TrainerState

from hone_trainer.tracking.journal import Entry
from hone_trainer.tracking.record import RunRecord, SentState

OUTCOMES = ("finished", "failed", "interrupted")


class Driver(Protocol):
    """One tracker. Each method may be called again after it has raised."""

    def begin(self, state: SentState) -> SentState:
        """Create the run or continue it. Return what the tracker has of it."""

    def send(self, entry: Entry) -> None:
        """Take a line to send."""

    def count_confirmed(self, handed_over: int) -> int:
        """Send the lines that were handed over, and return how many have arrived."""

    def end(self, outcome: str) -> None:
        """End the run, and wait until all lines have arrived."""


class RecordedArguments:
    """TrainingArguments as they were in the training process; `more` is added to their dictionary."""

    load_best_model_at_end = False
    trackio_space_id = trackio_bucket_id = hub_private_repo = None
    trackio_static_space_id = False

    def __init__(self, record: RunRecord, run_name: str, project: str = "", **more: str) -> None:
        self.run_name = run_name
        self.project = project
        self.output_dir = str(record.arguments.get("output_dir", ""))
        self._values = record.arguments | more

    def to_dict(self) -> dict[str, Any]:
        return dict(self._values)


class RecordedModel:
    """The model's configuration, its adapter's and its size."""

    def __init__(self, record: RunRecord) -> None:
        self.config = _RecordedConfig(record.model)
        self.peft_config = {"default": record.adapter} if record.adapter else None
        self._parameters = record.parameters

    def num_parameters(self) -> int:
        return self._parameters


class _RecordedConfig:
    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values

    def to_dict(self) -> dict[str, Any]:
        return dict(self._values)


class CallbackDriver:
    """Calls transformers' callback of a tracker as Trainer does."""

    def __init__(self, make_callback: Callable[[], Any], arguments: RecordedArguments, model: RecordedModel) -> None:
        self.callback = make_callback()
        self._state = TrainerState(is_local_process_zero=True, is_world_process_zero=True)
        self._arguments, self._model, self._control = arguments, model, TrainerControl()

    def begin(self) -> None:
        self.callback.on_train_begin(self._arguments, self._state, self._control, model=self._model)

    def log(self, entry: Entry) -> None:
        self._state.global_step, self._state.epoch = entry.step, entry.epoch
        # As Trainer.log does, which adds the epoch.
        logs = {**entry.values, "epoch": round(entry.epoch, 4)}
        self.callback.on_log(self._arguments, self._state, self._control, logs=logs, model=self._model)

    def end(self) -> None:
        self.callback.on_train_end(self._arguments, self._state, self._control, model=self._model)


def make_driver(name: str, options: dict[str, Any], record: RunRecord, logs: Path) -> Driver:
    """Return the driver of a tracker, whose library is imported here; `options` are its fields of the spec."""
    made: Driver = import_module(f"hone_trainer.tracking.{name}_driver").make_driver(options, record, logs)
    return made
