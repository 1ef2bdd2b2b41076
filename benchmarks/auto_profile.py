"""Profile auto against AMD's how-to, lever by lever: rows a second, and the loss on rows held out.

Goals: 2 times, and 1 % worse at most.

The same model, rows, epochs and LoRA in every run; only what the profile may choose differs. Lengths are spread a
little more than guanaco's (median 250 tokens, 95 % below 1,000; guanaco's 376 and 1,157), and cut at 1,024 as there.
Runs alternate, each in a fresh process.
"""

import argparse
import json
import os
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from common import make_model, print_comparison
from common import run as run_process

ROOT = Path(__file__).parents[1]
MEDIAN, SIGMA, SHORTEST, LONGEST = 250, 0.85, 20, 1024
HELD_OUT = 0.1
# Changes to the how-to's arguments; None leaves a field out. The last is followed by profile auto itself.
LEVERS: dict[str, dict[str, Any]] = {
    "the how-to, with what TRL sets today": {"activationCheckpointing": None},
    "the how-to as it was": {},
    "the same, optimizer of profile auto": {"optim": None},
    "the same, order of profile auto": {"optim": None, "trainSamplingStrategy": None},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=200)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder / "model")
        make_unlike_rows(folder / "train.jsonl", options.rows)
        runs = {lever: make_how_to_spec(changes) for lever, changes in LEVERS.items()} | {
            "profile auto, with the how-to's batch": make_auto_spec({"perDeviceTrainBatchSize": 4}),
            "profile auto": make_auto_spec({}),
        }
        speeds: dict[str, list[float]] = {lever: [] for lever in runs}
        losses: dict[str, float] = {}
        for number in range(options.rounds):
            order = list(runs) if number % 2 == 0 else list(reversed(runs))
            for lever in order:
                metrics = train_model(folder, f"{lever} {number}".replace(" ", "-").replace(",", ""), runs[lever])
                speeds[lever].append(metrics["trainSamplesPerSecond"])
                losses[lever] = metrics["evalLossAfter"]
    base = "the how-to as it was"
    for lever in runs:
        print_comparison(lever, "rows/s", speeds[lever], speeds[base], base)
        print(f"  loss on rows held out {losses[lever]:.4f}, {losses[lever] / losses[base] - 1:+.2%}")


def make_how_to_spec(changes: dict[str, Any]) -> dict[str, Any]:
    """Return the how-to's LoRA run on the benchmark's model and rows, with some arguments changed."""
    spec: dict[str, Any] = yaml.safe_load((ROOT / "examples/llama2-guanaco/lora.yaml").read_text())["spec"]
    training = spec["training"] | {"loggingSteps": 10, "learningRate": 1e-3} | changes
    return place_spec_here(spec, {name: value for name, value in training.items() if value is not None})


def make_auto_spec(written: dict[str, Any]) -> dict[str, Any]:
    """Return the same run without the fields that the profile may choose, except those given."""
    spec = make_how_to_spec({})
    fixed_fields = (
        "numTrainEpochs learningRate weightDecay maxGradNorm warmupSteps"
        "  lrSchedulerType loggingSteps maxLength padToken".split()
    )
    return spec | {
        "training": {name: spec["training"][name] for name in fixed_fields} | written,
        "model": {"claim": spec["model"]["claim"]},
    }


def place_spec_here(spec: dict[str, Any], training: dict[str, Any]) -> dict[str, Any]:
    """Return the spec for the benchmark's model and rows."""
    return {
        "model": {"claim": {"name": "here", "path": "model"}, "dtype": "float32"},
        "dataset": {"claim": {"name": "here", "path": "train.jsonl"}, "evalFraction": HELD_OUT},
        "method": spec["method"],
        "lora": spec["lora"],
        "training": training,
        "checkpoint": spec["checkpoint"],
        "resources": {"gpus": int(os.environ.get("HONE_BENCHMARK_GPUS", "0"))},
    }


def train_model(folder: Path, run: str, spec: dict[str, Any]) -> dict[str, float]:
    """Return the final metrics of a run."""
    job = {"apiVersion": "hone.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "benchmark"}, "spec": spec}
    manifest, output = folder / f"{run}.yaml", folder / run
    manifest.write_text(yaml.safe_dump(job))
    command = [sys.executable, "-m", "hone_trainer", "run", str(manifest), "--output", str(output)]
    run_process([*command, "--claim", f"here={folder}", "--port", "0"])
    found: dict[str, float] = json.loads((output / "manifest.json").read_text())["metrics"]
    return found


def make_unlike_rows(file: Path, rows: int) -> None:
    """Write rows of text with log-normal lengths, in tokens of one byte."""
    chance = random.Random(0)
    with file.open("w") as out:
        for _ in range(rows):
            length = min(LONGEST, max(SHORTEST, round(chance.lognormvariate(0, SIGMA) * MEDIAN)))
            words = " ".join(f"word{chance.randrange(97)}" for _ in range(length // 6 + 1))
            out.write(json.dumps({"text": words[:length]}) + "\n")


if __name__ == "__main__":
    main()
