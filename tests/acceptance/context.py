"""Shared by all steps: the context that the parent passes to each step's process, and how a step ends.

A step is a function of a Context in a process of its own. It returns its figures when it passed, raises NotRun when
this machine lacks a requirement, and Failed, or any other exception, when Hone did not behave as it should.
"""

import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
HIDING = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
Figures = dict[str, Any]


class NotRun(Exception):
    """The reason why the step was not run."""


class Failed(Exception):
    """The condition that did not hold."""


@dataclass(frozen=True)
class Context:
    """The inputs of a step. `device` is cpu if the CPU stands in; `vendor` is amd, nvidia or none.

    `folder` holds models, data and outputs; `vllm` is the path of vLLM's program.
    """

    device: str
    vendor: str
    gpus: int
    folder: Path
    vllm: str | None = None

    @property
    def one(self) -> int:
        """Return the value of spec.resources.gpus for one process."""
        return 1 if self.device == "gpu" else 0

    def to_json(self) -> str:
        return json.dumps(asdict(self) | {"folder": str(self.folder)})

    @classmethod
    def from_json(cls, text: str) -> "Context":
        found = json.loads(text)
        return cls(**found | {"folder": Path(found["folder"])})


def need_gpu(context: Context) -> None:
    """Raise NotRun if the CPU stands in for the GPU."""
    if context.device != "gpu":
        raise NotRun("only a GPU can show it")


def make_job(context: Context, method: str, example: str = "lora", **changes: Any) -> dict[str, Any]:
    """Return the how-to's FineTuneJob on the local model and rows. `changes`: of the spec; training's are merged."""
    spec = yaml.safe_load((ROOT / f"examples/llama2-guanaco/{example}.yaml").read_text())["spec"]
    training = spec["training"] | {"learningRate": 3e-3, "loggingSteps": 1, "maxLength": 128}
    spec = {
        "model": spec["model"] | {"name": None, "claim": {"name": "local", "path": "model"}},
        "dataset": {"claim": {"name": "local", "path": "rows.jsonl"}},
        "method": method,
        "lora": None if method == "full" else spec["lora"] | {"loraDropout": 0.0},
        "training": training | changes.pop("training", {}),
        "checkpoint": spec["checkpoint"],
        "resources": {"gpus": context.one},
    } | changes
    for part in (spec, spec["model"], spec["training"]):
        for name in [name for name, value in part.items() if value is None]:
            del part[name]
    return {"apiVersion": "hone.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "accept"}, "spec": spec}


def write_trainer_command(context: Context, name: str, job: Mapping[str, Any]) -> list[str]:
    """Write the manifest of a run, and return the command that trains it into the folder `name`."""
    manifest = context.folder / f"{name}.yaml"
    manifest.write_text(yaml.safe_dump(dict(job)))
    command = [sys.executable, "-m", "hone_trainer", "run", str(manifest), "--output", str(context.folder / name)]
    return [*command, "--claim", f"local={context.folder}", "--port", "0"]


def train(context: Context, name: str, job: Mapping[str, Any]) -> Path:
    """Train into the folder `name`, and return it. Raises Failed when the trainer fails."""
    run_command(write_trainer_command(context, name, job))
    output = context.folder / name
    if not (output / "manifest.json").is_file():
        raise Failed(f"the trainer exited with 0, and {output.name} has no manifest.json")
    return output


def run_command(command: Sequence[str], **environment: str) -> None:
    """Run a command with its output in the step's log. Raises Failed when it exits with another code than 0."""
    print("$", *command, flush=True)
    done = subprocess.run(command, env=os.environ | environment, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise Failed(f"`{' '.join(command[1:4])}` exited with code {done.returncode}")


def read_metrics(output: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics log."""
    return [json.loads(line) for line in (output / "logs/metrics.jsonl").read_text().splitlines()]


def check_learning(context: Context, output: Path) -> Figures:
    """Return the figures of a run. Raises Failed when it did not learn, or did not compute on the GPU."""
    lines = read_metrics(output)
    losses = [line["loss"] for line in lines if "loss" in line]
    if not losses or not all(math.isfinite(loss) for loss in losses):
        raise Failed(f"the losses are not finite numbers: {losses[:5]}")
    last = losses[-max(1, len(losses) // 4) :]
    if sum(last) / len(last) >= losses[0]:
        raise Failed(f"the loss did not go down: {losses[0]:.4f} at the start, {sum(last) / len(last):.4f} at the end")
    allocated = max((line.get("device_memory_allocated", 0) for line in lines), default=0)
    if context.device == "gpu" and not allocated:
        raise Failed("torch allocated no memory of the GPU: the run was on the CPU")
    metrics = json.loads((output / "manifest.json").read_text())["metrics"]
    return {
        "lossFirst": losses[0],
        "lossLast": losses[-1],
        "stepsLogged": len(losses),
        "gpuBytesAllocated": allocated or None,
        "rowsPerSecond": metrics.get("trainSamplesPerSecond"),
    }
