"""Record what a trainer process of the tests does, and stop it at a given batch."""

import json
import os
import signal
from pathlib import Path
from typing import Any

from hone_trainer.training.trainer import HoneTrainer


def record_rows(path: Path) -> None:
    """Append a line for each batch: the step it belongs to, its tokens and its labels."""
    original = HoneTrainer.training_step

    def recorded(self: HoneTrainer, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        line = [self.state.global_step + 1, inputs["input_ids"].tolist(), inputs["labels"].tolist()]
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        return original(self, model, inputs, *args, **kwargs)

    HoneTrainer.training_step = recorded  # type: ignore[method-assign]


def stop_at(batch: int) -> None:
    """Send SIGTERM to this process when its `batch`-th batch begins."""
    original = HoneTrainer.training_step
    count = 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        if count == batch:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*args, **kwargs)

    HoneTrainer.training_step = counted  # type: ignore[method-assign]
