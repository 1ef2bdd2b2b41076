"""What an experiment tracker costs training: runs with a dead one and with a silent one against runs without any.

The dead one refuses connections, the silent one accepts them and never answers. Every step is logged. The time is that
of training (trainRuntime), without what comes before and after it. Goal: at most 1.01 each.
"""

import argparse
import json
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml
from common import make_model, make_rows, print_comparison, run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=600)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, open_servers() as servers:
        folder = Path(name)
        make_model(folder / "model")
        make_rows(folder / "train.jsonl", 2 * options.steps)
        seconds: dict[str, list[float]] = {kind: [] for kind in servers}
        for number in range(options.rounds):
            order = [*servers] if number % 2 == 0 else [*reversed(servers)]
            for kind in order:
                seconds[kind].append(train(folder, servers[kind], options.steps))
    for kind in ("dead", "silent"):
        print_comparison(f"training with a {kind} tracker", "s", seconds[kind], seconds["none"], "without one")


@contextmanager
def open_servers() -> Iterator[dict[str, str | None]]:
    """Yield the address of each kind of tracker."""
    with socket.socket() as dead, socket.create_server(("127.0.0.1", 0), backlog=1000) as silent:
        dead.bind(("127.0.0.1", 0))  # without listening: it refuses
        ports = {"dead": dead.getsockname()[1], "silent": silent.getsockname()[1]}
        yield {"none": None, **{kind: f"http://127.0.0.1:{port}" for kind, port in ports.items()}}


def train(folder: Path, server: str | None, steps: int) -> float:
    """Return the seconds of a training."""
    output = folder / "out"
    shutil.rmtree(output, ignore_errors=True)
    training = {"profile": "none", "perDeviceTrainBatchSize": 2, "maxSteps": steps, "loggingSteps": 1, "bf16": False}
    spec = {
        "model": {"claim": {"name": "here", "path": "model"}},
        "dataset": {"claim": {"name": "here", "path": "train.jsonl"}},
        "training": training,
        "checkpoint": {"saveSteps": steps},
        "resources": {"gpus": 0},
    }
    tracking = {"tracking": {"mlflow": {"uri": server}}} if server else {}
    job = {"apiVersion": "hone.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "benchmark"}}
    (folder / "job.yaml").write_text(yaml.safe_dump(job | {"spec": spec | tracking}))
    arguments = ["run", str(folder / "job.yaml"), "--output", str(output), "--claim", f"here={folder}", "--port", "0"]
    run([sys.executable, "-m", "hone_trainer", *arguments])
    return float(json.loads((output / "manifest.json").read_text())["metrics"]["trainRuntime"])


if __name__ == "__main__":
    main()
