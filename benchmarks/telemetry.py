"""What Hone's own callbacks cost a step, measured inside a real run. Goal: under 0.5 % of a step of 50 ms.

Progress, the metrics log, TensorBoard, the stop flag: the time in each, added up over the run and divided by its steps.
"""

import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from common import make_model, make_rows
from hone_trainer.main import main as trainer
from hone_trainer.training.callbacks import ReportCallback, StopCallback
from hone_trainer.training.tensorboard import TensorBoardWriter

STEPS = 300
STEP_SECONDS = 0.05
CALLBACKS = (ReportCallback, StopCallback, TensorBoardWriter)


def main() -> None:
    spent: dict[str, float] = defaultdict(float)
    for callback in CALLBACKS:
        for name in [name for name in vars(callback) if name in ("on_step_end", "on_log", "on_save", "on_step_begin")]:
            setattr(callback, name, measure_time(f"{callback.__name__}.{name}", getattr(callback, name), spent))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder / "model")
        make_rows(folder / "train.jsonl", STEPS)
        job = {
            "apiVersion": "hone.dev/v1alpha1",
            "kind": "FineTuneJob",
            "metadata": {"name": "benchmark"},
            "spec": {
                "model": {"claim": {"name": "here", "path": "model"}},
                "dataset": {"claim": {"name": "here", "path": "train.jsonl"}},
                "training": {"profile": "none", "perDeviceTrainBatchSize": 1, "maxSteps": STEPS, "bf16": False},
                "resources": {"gpus": 0},
            },
        }
        (folder / "job.yaml").write_text(yaml.safe_dump(job))
        code = trainer(
            [
                "run",
                str(folder / "job.yaml"),
                "--output",
                str(folder / "out"),
                "--claim",
                f"here={folder}",
                "--port",
                "0",
            ]
        )
    if code:
        sys.exit(f"the trainer ended with {code}")
    for name, seconds in sorted(spent.items()):
        print(f"{name}: {1e6 * seconds / STEPS:.0f} microseconds a step")
    share = sum(spent.values()) / STEPS / STEP_SECONDS
    print(f"all callbacks: {1e6 * sum(spent.values()) / STEPS:.0f} microseconds a step, {share:.2%} of a step of 50 ms")


def measure_time(name: str, method: Callable[..., Any], spent: dict[str, float]) -> Callable[..., Any]:
    """Return the method, with its time added to `spent`."""

    def run(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        try:
            return method(*args, **kwargs)
        finally:
            spent[name] += time.perf_counter() - began

    return run


if __name__ == "__main__":
    main()
