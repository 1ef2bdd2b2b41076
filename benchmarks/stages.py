"""What comes before the first step: start-up, preparing many rows, planning a 7B model. Each in fresh processes.

Goals: start to the first step 1.2 times the bare imports plus model load; memory of preparing does not grow with the
rows; a plan in 10 s and 1 GB.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from common import make_model, make_rows, print_comparison, run
from transformers import LlamaConfig

GIB = 2**30
BARE = """
import sys
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer
AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="auto")
AutoTokenizer.from_pretrained(sys.argv[1])
"""
FIRST_STEP = "step 1/"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", type=Path, help="folder of a model for the start-up; default: a tiny one")
    parser.add_argument("--rows", type=int, default=100_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder / "model")
        start_up(folder, options.model or folder / "model", options.rounds)
        measure_many_rows(folder, options.rows)
        measure_plan(folder)


def start_up(folder: Path, model: Path, rounds: int) -> None:
    make_rows(folder / "few.jsonl", 32)
    ours, theirs = [], []
    for number in range(rounds):
        output = folder / f"start{number}"
        spec = make_job("few.jsonl", {"maxSteps": 1, "loggingSteps": 1, "perDeviceTrainBatchSize": 1})
        claims = [f"here={folder}", f"model={model}"]
        run_trainer("prepare", folder, spec, output, claims)
        ours.append(measure_first_step(folder, spec, output, claims))
        began = time.monotonic()
        run([sys.executable, "-c", BARE, str(model)])
        theirs.append(time.monotonic() - began)
    print_comparison("start to the first step", "s", ours, theirs, "bare imports and model load")


def measure_first_step(folder: Path, spec: dict[str, Any], output: Path, claims: list[str]) -> float:
    """Return the seconds from the process's start to its first optimizer step, which itself is not counted."""
    began = time.monotonic()
    with subprocess.Popen(
        make_command("run", folder, spec, output, claims), stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr
        for line in process.stderr:
            if line.startswith(FIRST_STEP):
                passed = time.monotonic() - began
                process.stderr.read()
                process.wait()
                metrics = json.loads((output / "manifest.json").read_text())["metrics"]
                return passed - float(metrics["trainRuntime"])
    sys.exit("the trainer ended without a step")


def measure_many_rows(folder: Path, rows: int) -> None:
    memory = {}
    for count in (rows // 10, rows):
        make_rows(folder / "many.jsonl", count)
        began = time.monotonic()
        memory[count] = measure_anonymous_peak(
            make_command("prepare", folder, make_job("many.jsonl", {}), folder / f"many{count}")
        )
        print(f"preparing {count:,} rows: {time.monotonic() - began:.0f} s, {memory[count] / GIB:.2f} GiB", flush=True)
    print(f"  memory of ten times the rows: ratio {memory[rows] / memory[rows // 10]:.2f}")


def measure_anonymous_peak(command: list[str]) -> int:
    """Return the peak of the command's private memory in bytes; pages of mapped files don't count."""
    peak = 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            held = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
            peak = max(peak, int(held[1]) * 1024 if held else 0)
            time.sleep(0.05)
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}")
    return peak


def measure_plan(folder: Path) -> None:
    (folder / "seven").mkdir()
    LlamaConfig(
        hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32, vocab_size=32000
    ).save_pretrained(folder / "seven")
    spec = make_job("few.jsonl", {})
    spec["spec"]["model"] = {"claim": {"name": "here", "path": "seven"}}
    spec["spec"]["resources"] = {"gpus": 1}
    manifest = folder / "plan.yaml"
    manifest.write_text(yaml.safe_dump(spec))
    began = time.monotonic()
    _, memory = run([sys.executable, "-m", "hone_trainer", "plan", str(manifest), "--claim", f"here={folder}"])
    print(f"plan of a 7B model: {time.monotonic() - began:.1f} s, {memory / GIB:.2f} GiB")


def make_job(rows: str, training: dict[str, Any]) -> dict[str, Any]:
    """Return a LoRA job on the benchmark's rows, in float32 on the CPU."""
    return {
        "apiVersion": "hone.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": "benchmark"},
        "spec": {
            "model": {"claim": {"name": "model"}},
            "dataset": {"claim": {"name": "here", "path": rows}},
            "training": training,
            "resources": {"gpus": 0},
        },
    }


def make_command(
    command: str, folder: Path, spec: dict[str, Any], output: Path, claims: list[str] | None = None
) -> list[str]:
    """Return the trainer's command line."""
    manifest = folder / f"{output.name}.yaml"
    manifest.write_text(yaml.safe_dump(spec))
    found = [sys.executable, "-m", "hone_trainer", command, str(manifest), "--output", str(output)]
    for claim in claims or [f"here={folder}", f"model={folder / 'model'}"]:
        found += ["--claim", claim]
    return [*found, "--port", "0"] if command == "run" else found


def run_trainer(command: str, folder: Path, spec: dict[str, Any], output: Path, claims: list[str]) -> None:
    run(make_command(command, folder, spec, output, claims))


if __name__ == "__main__":
    main()
