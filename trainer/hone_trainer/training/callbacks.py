"""Callbacks of the training loop: one stops training when a signal has arrived, one reports progress.

`pipeline` adds both to HoneTrainer. Progress goes to the telemetry (`progress.state`), metrics.jsonl and the terminal.
"""

import time
from collections import deque
from math import isfinite
from typing import Any

from hone_api.artifacts.trainer_reports import Progress
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_callback import TrainerControl, TrainerState

from hone_trainer.distributed.process_group import ProcessGroup
from hone_trainer.progress.state import ProgressState, format_now
from hone_trainer.progress.terminal import Terminal
from hone_trainer.runtime.signals import EvaluationInterrupted, Interrupted, StopSignal
from hone_trainer.training import memory_usage
from hone_trainer.training.metrics_log import MetricsLog
from hone_trainer.training.trainer import HoneTrainer

PUBLISH_SECONDS = 1.0
# The number of publications over which speeds are averaged.
WINDOW = 30


class StopCallback(TrainerCallback):
    """Saves a checkpoint and stops at the end of the step, or of the batch of an evaluation, in which a signal arrived.

    All processes stop at the same step, no matter which of them received the signal.
    """

    def __init__(self, stop: StopSignal, group: ProcessGroup) -> None:
        self._stop = stop
        self._group = group

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._group.is_set_on_any_rank(
            self._stop.is_requested
        ):  # the checkpoint was still being loaded: there is nothing to lose yet
            raise Interrupted

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._group.is_set_on_any_rank(self._stop.is_requested):
            raise EvaluationInterrupted

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        if self._group.is_set_on_any_rank(self._stop.is_requested):
            control.should_save = True
            control.should_training_stop = True
        return control


class ReportCallback(TrainerCallback):
    """Publishes progress: at every log, and between logs at most once a second."""

    def __init__(
        self, trainer: HoneTrainer, telemetry: ProgressState, metrics: MetricsLog | None, terminal: Terminal
    ) -> None:
        self._trainer = trainer
        self._telemetry = telemetry
        self._metrics = metrics
        self._terminal = terminal
        self._logged: dict[str, float | None] = {}
        self._points: deque[tuple[float, int, int]] = deque(maxlen=WINDOW)
        self._due = 0.0
        self._last_log = (time.monotonic(), 0)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._last_log = (time.monotonic(), self._trainer.tokens)
        self._publish(state)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if time.monotonic() >= self._due:
            self._publish(state)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        logs = logs or {}
        if "train_runtime" in logs:  # the summary of this one call; the manifest has the metrics of all starts together
            return
        used = self._used() if "loss" in logs else {}
        if self._metrics:
            self._metrics.add(state.global_step, {"epoch": state.epoch, **logs, **used})
        if "loss" in logs:
            values = {name: logs.get(name) for name in ("loss", "grad_norm", "learning_rate")}
            # Five digits are enough for a person; metrics.jsonl has all of them.
            self._logged = {
                name: float(f"{value:.5g}") if value is not None and isfinite(value) else None
                for name, value in values.items()
            }
            self._publish(state)
            self._terminal.print_logged_step(self._telemetry.progress)
        elif "eval_loss" in logs:
            when = f"step {state.global_step}" if state.global_step else "before training"
            self._terminal.print_note(f"{when}: evaluation loss {logs['eval_loss']:.4f}")

    def _used(self) -> dict[str, float]:
        """Return the speed since the last log, and the memory."""
        moment, tokens = time.monotonic(), self._trainer.tokens
        (began, before), self._last_log = self._last_log, (moment, tokens)
        return {
            memory_usage.SPEED: round((tokens - before) / max(moment - began, 1e-9), 1),
            **memory_usage.read_memory_usage(),
        }

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._publish(state)

    def _publish(self, state: TrainerState) -> None:
        moment, step, tokens = time.monotonic(), state.global_step, self._trainer.tokens
        self._due = moment + PUBLISH_SECONDS
        self._points.append((moment, step, tokens))
        began, first_step, first_tokens = self._points[0]
        seconds = moment - began
        steps_a_second = (step - first_step) / seconds if seconds > 0 else 0.0
        self._telemetry.tokens = tokens
        self._telemetry.progress = Progress(
            step=step,
            total_steps=state.max_steps,
            epoch=round(state.epoch or 0.0, 4),
            tokens_per_second=round((tokens - first_tokens) / seconds, 1) if steps_a_second else None,
            samples_per_second=round(steps_a_second * self._trainer.samples_a_step, 3) if steps_a_second else None,
            percent=100 * step // max(state.max_steps, 1),
            eta=round((state.max_steps - step) / steps_a_second) if steps_a_second else None,
            updated_at=format_now(),
            **self._logged,
        )
        self._terminal.show_progress(self._telemetry.progress)
