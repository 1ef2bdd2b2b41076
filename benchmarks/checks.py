"""What the checks cost: checks of rows next to tokenizing them, and the check of a merge next to the merge.

Goals: the checks of rows at most 10 % of tokenizing 100,000 rows; the check of a merge, which loads the merged model,
at most 15 % of `hone merge` as its user waits for it (give SmolLM2-135M as --model). The share of the merge alone is
printed as well, without Python's and the libraries' start. Each round is a fresh process that times its own calls.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from common import format_spread, make_model, run
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

# Times the functions named on the command line (module:function or module:Class.method) while Hone's command runs, and
# prints their seconds, and those of the command, as JSON.
TIMED = """
import importlib, json, sys, time
names, arguments = sys.argv[1].split(","), sys.argv[2:]
seconds = dict.fromkeys(names, 0.0)
def timed(name, function):
    def call(*args, **kwargs):
        began = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            seconds[name] += time.perf_counter() - began
    return call
for name in names:
    module, _, path = name.partition(":")
    owner = importlib.import_module(module)
    *outer, last = path.split(".")
    for part in outer:
        owner = getattr(owner, part)
    setattr(owner, last, timed(name, getattr(owner, last)))
from hone_trainer.main import main
began = time.perf_counter()
assert main(arguments) == 0
print("\\n" + json.dumps({"all": time.perf_counter() - began, **seconds}))
"""
TOKENIZING = "hone_trainer.data.tokenization:DatasetTokenizer.tokenize_full"
CHECKS = [
    "hone_trainer.data.dataset:survey_columns",
    "hone_trainer.data.template_reads:find_unread",
    "hone_trainer.checks.tokenized:SplitChecker.check_split",
    "hone_trainer.checks.tokenized:SplitChecker.find_warnings",
    "hone_trainer.checks.tokenized:SplitChecker.find_leaks",
]
MERGE_CHECKS = ["hone_trainer.merging.write:compare_with", "hone_trainer.merging.write:check_merged"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--model", type=Path, help="folder of the model to merge into; default: a tiny one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder / "model")
        check_rows(folder, options.rows, options.rounds)
        check_merge(folder, options.model or folder / "model", options.rounds)


def check_rows(folder: Path, rows: int, rounds: int) -> None:
    """Prepare conversations, and compare the time of the checks with that of tokenizing."""
    with (folder / "rows.jsonl").open("w") as file:
        for index in range(rows):
            texts = [" ".join(f"word{(index * 7 + word) % 97}" for word in range(20 * part)) for part in (1, 2)]
            turns = [{"role": role, "content": text} for role, text in zip(("user", "assistant"), texts, strict=True)]
            file.write(json.dumps({"messages": turns}) + "\n")
    spec: dict[str, Any] = {
        "model": {"claim": {"name": "here", "path": "model"}},
        "dataset": {"claim": {"name": "here", "path": "rows.jsonl"}},
        "resources": {"gpus": 0},
    }
    kind = {"apiVersion": "hone.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "checks"}, "spec": spec}
    (folder / "job.yaml").write_text(yaml.safe_dump(kind))
    shares = []
    for number in range(rounds):
        output = ["--output", str(folder / f"out{number}"), "--claim", f"here={folder}"]
        seconds = time_calls([TOKENIZING, *CHECKS], ["prepare", str(folder / "job.yaml"), *output])
        shares.append(sum(seconds[name] for name in CHECKS) / seconds[TOKENIZING])
    print(f"checks of {rows} rows, share of tokenizing them: {format_spread(shares)}", flush=True)


def check_merge(folder: Path, model: Path, rounds: int) -> None:
    """Merge an adapter, and compare the check with the merge around it."""
    base = AutoModelForCausalLM.from_pretrained(model, dtype="auto")
    adapter = get_peft_model(base, LoraConfig(r=16, target_modules="all-linear", init_lora_weights=False))
    for parameter in adapter.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.01)
    adapter.save_pretrained(folder / "adapter")
    of_command, of_merge = [], []
    for number in range(rounds):
        arguments = ["merge", str(folder / "adapter"), str(folder / f"merged{number}"), "--base", str(model)]
        began = time.perf_counter()
        seconds = time_calls(MERGE_CHECKS, arguments)
        command = time.perf_counter() - began
        check = sum(seconds[name] for name in MERGE_CHECKS)
        of_command.append(check / (command - check))
        of_merge.append(check / (seconds["all"] - check))
    print(f"check of a merge, share of the command without it: {format_spread(of_command)}", flush=True)
    print(f"the same, share of the merge alone: {format_spread(of_merge)}", flush=True)


def time_calls(names: list[str], arguments: list[str]) -> dict[str, float]:
    """Return the seconds that calls of these functions took while Hone's trainer ran a command."""
    printed, _ = run([sys.executable, "-c", TIMED, ",".join(names), *arguments])
    seconds: dict[str, float] = json.loads(printed.strip().splitlines()[-1])
    return seconds


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
