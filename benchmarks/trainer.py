"""Optimizer steps a second: Hone's trainer against a plain TRL script with the same arguments. Goal: at least 0.98.

Each run is a fresh process; runs alternate, and the order changes every round, so that the machine's moods hit both.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml
from common import compare, make_model, make_rows

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
        for number in range(options.rounds):
            order = ("hone", "trl") if number % 2 == 0 else ("trl", "hone")
            for kind in order:
                run = run_hone if kind == "hone" else run_trl
                rates[kind].append(options.steps / run(folder, f"{kind}{number}", options.steps))
    compare("training", "steps/s", rates["hone"], rates["trl"], "plain TRL")


def run_hone(folder: Path, run: str, steps: int) -> float:
    """Seconds that Hone's trainer says its training took."""
    training = {CAMEL[name]: value for name, value in (ARGUMENTS | {"max_steps": steps}).items()}
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
    manifest, output = folder / f"{run}.yaml", folder / run
    manifest.write_text(yaml.safe_dump(job))
    words = ["-m", "hone_trainer", "run", str(manifest), "--output", str(output), "--claim", f"here={folder}"]
    _python([*words, "--port", "0"])
    return float(json.loads((output / "manifest.json").read_text())["metrics"]["trainRuntime"])


def run_trl(folder: Path, run: str, steps: int) -> float:
    """Seconds of trainer.train() in a plain script that saves as many checkpoints."""
    arguments = ARGUMENTS | {"max_steps": steps, "save_steps": SAVE_STEPS, "save_total_limit": 2}
    script = Path(__file__).with_name("plain_trl.py")
    words = [str(script), str(folder / "model"), str(folder / "train.jsonl"), str(folder / run)]
    printed = _python([*words, json.dumps(arguments)])
    return float(printed.rpartition("seconds ")[2])


def _python(words: list[str]) -> str:
    """Run this Python with the words; exits with its output's end when it fails."""
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, env=dict(os.environ, HF_HUB_OFFLINE="1")
    )
    if done.returncode:
        sys.exit(f"{' '.join(words)} ended with {done.returncode}\n{(done.stdout + done.stderr)[-3000:]}")
    return done.stdout


if __name__ == "__main__":
    main()
