"""Optimizer steps a second and peak memory: Hone's trainer against a plain TRL script with the same arguments.

Goals: at least 0.98 of its speed, at most 1.02 of its memory.

Each run is a fresh process; runs alternate, and the order changes every round, so that the machine's moods hit both.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from common import make_model, make_rows, print_comparison, run

BATCH = 4
ARGUMENTS = {
    "per_device_train_batch_size": BATCH,
    "learning_rate": 1e-3,
    "max_length": 256,
    "bf16": False,
    "activation_checkpointing": False,
    "logging_steps": 10,
}
CAMEL = {
    "per_device_train_batch_size": "perDeviceTrainBatchSize",
    "learning_rate": "learningRate",
    "max_length": "maxLength",
    "bf16": "bf16",
    "activation_checkpointing": "activationCheckpointing",
    "logging_steps": "loggingSteps",
    "max_steps": "maxSteps",
}
SAVE_STEPS = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=150)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder / "model")
        make_rows(folder / "train.jsonl", rows=BATCH * options.steps)
        rates: dict[str, list[float]] = {"hone": [], "trl": []}
        memory: dict[str, list[float]] = {"hone": [], "trl": []}
        for number in range(options.rounds):
            order = ("hone", "trl") if number % 2 == 0 else ("trl", "hone")
            for kind in order:
                measure = run_hone if kind == "hone" else run_trl
                seconds, held = measure(folder, f"{kind}{number}", options.steps)
                rates[kind].append(options.steps / seconds)
                memory[kind].append(held / 2**30)
    print_comparison("training", "steps/s", rates["hone"], rates["trl"], "plain TRL")
    print_comparison("peak memory", "GiB", memory["hone"], memory["trl"], "plain TRL")


def run_hone(folder: Path, name: str, steps: int) -> tuple[float, int]:
    """Return the seconds of training that Hone's trainer reports, and its peak memory in bytes."""
    training: dict[str, Any] = {"profile": "none"} | {
        CAMEL[name]: value for name, value in (ARGUMENTS | {"max_steps": steps}).items()
    }
    job = {
        "apiVersion": "hone.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": "benchmark"},
        "spec": {
            "model": {"claim": {"name": "here", "path": "model"}, "dtype": "float32"},
            "dataset": {"claim": {"name": "here", "path": "train.jsonl"}},
            "training": training,
            "checkpoint": {"saveSteps": SAVE_STEPS},
            "resources": {"gpus": 0},
        },
    }
    manifest, output = folder / f"{name}.yaml", folder / name
    manifest.write_text(yaml.safe_dump(job))
    words = [sys.executable, "-m", "hone_trainer", "run", str(manifest), "--output", str(output)]
    _, held = run([*words, "--claim", f"here={folder}", "--port", "0"])
    return float(json.loads((output / "manifest.json").read_text())["metrics"]["trainRuntime"]), held


def run_trl(folder: Path, name: str, steps: int) -> tuple[float, int]:
    """Return the seconds of trainer.train() in a plain script with as many checkpoints, and its peak memory, bytes."""
    arguments = ARGUMENTS | {"max_steps": steps, "save_steps": SAVE_STEPS, "save_total_limit": 2}
    script = Path(__file__).with_name("plain_trl.py")
    words = [sys.executable, str(script), str(folder / "model"), str(folder / "train.jsonl"), str(folder / name)]
    printed, held = run([*words, json.dumps(arguments)])
    return float(printed.rpartition("seconds ")[2]), held


if __name__ == "__main__":
    main()
