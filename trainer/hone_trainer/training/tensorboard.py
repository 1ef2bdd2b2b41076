"""TensorBoard's curves in logs/: each step once, even after resumes."""

from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from transformers import TrainingArguments
from transformers.integrations.integration_utils import TensorBoardCallback, rewrite_logs
from transformers.trainer_callback import TrainerControl, TrainerState

from hone_trainer.storage.checkpoints import RunTotals
from hone_trainer.training import memory_usage

NOT_SHOWN = ("step", memory_usage.SPEED, *memory_usage.MEMORY)


class TensorBoardWriter(TensorBoardCallback):
    """Writes the logged values after those of earlier starts of the run."""

    def __init__(self, folder: Path, resumed: RunTotals | None, last_line: dict[str, Any]) -> None:
        """Hide the steps after `resumed`. `last_line` is that of metrics.jsonl, whose values must stay visible."""
        step = resumed.step if resumed else 0
        repeated = bool(resumed and resumed.evaluation_due)
        writer = SummaryWriter(str(folder), purge_step=step + 1 if resumed and not repeated else step)
        super().__init__(writer)  # type: ignore[no-untyped-call]
        if repeated and last_line.get("step") == step and "loss" in last_line:
            trained = {
                name: value for name, value in last_line.items() if name not in NOT_SHOWN and not _evaluated(name)
            }
            for tag, value in rewrite_logs(trained).items():  # type: ignore[no-untyped-call]
                writer.add_scalar(tag, float("nan") if value is None else value, step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        if "train_runtime" not in (logs or {}):  # the summary of this one start
            super().on_log(args, state, control, logs, **kwargs)  # type: ignore[no-untyped-call]


def _evaluated(name: str) -> bool:
    return name.startswith("eval_")
