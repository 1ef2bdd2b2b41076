"""Stopped anywhere, in every mode, a run takes the same rows in the same steps and ends with the same bytes."""

import itertools
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from signal import SIGTERM
from typing import Any

import pytest
from long_matrix import is_long, make_random, sample

Job = Callable[..., dict[str, Any]]
# The batches of each step.
Rows = dict[int, list[Any]]

EPOCHS = 3
ROWS = 18
WORDS = "a checkpoint is complete or it is absent and every failure has a name"
DIMENSIONS: dict[str, list[Any]] = {
    "order": ["random", "sequential", "group_by_length"],
    "packing": [None, "bfd", "bfd_split", "wrapped"],
    "accumulation": [1, 3],
    "evaluated": [False, True],
    "workers": [0, 1, 2],
    "method": ["lora", "full"],
    "shuffled": [False, True],
    "checkpointing": [False, True],
}
CASES = [dict(zip(DIMENSIONS, values, strict=True)) for values in itertools.product(*DIMENSIONS.values())]
GROUPED = {"trainSamplingStrategy": "group_by_length"}
OTHERS: list[dict[str, Any]] = [
    {"neftuneNoiseAlpha": 5},
    {"lrSchedulerType": "reduce_lr_on_plateau", "evalSteps": 2},
    {"dataSeed": 7, **GROUPED},
    {"fullDeterminism": True},
    {"optim": "adafactor"},
    {"optim": "sgd", "labelSmoothingFactor": 0.1},
    {"numTrainEpochs": 2.5, **GROUPED},
    {"bf16": True},
    {"extra": {"dataloaderDropLast": True}, **GROUPED},
    {"extra": {"dataloaderPersistentWorkers": True}, "dataloaderNumWorkers": 1, **GROUPED},
    {"extra": {"evalOnStart": True}},
    {"extra": {"loggingFirstStep": True}, "loggingSteps": 4},
    {"extra": {"lossType": "dft"}},
    {"extra": {"truncationMode": "keep_end"}, "maxLength": 16},
    {"profile": "auto"},
]  # fmt: skip


def name(case: dict[str, Any]) -> str:
    return "-".join(name(value) if isinstance(value, dict) else f"{key}:{value}" for key, value in case.items())


@pytest.fixture(scope="module")
def uneven(claim: Path) -> str:
    """Write rows of many lengths, so that their order and grouping show."""
    words = WORDS.split()
    rows = [{"text": " ".join(words[n % 3 : n % 3 + 1 + n * 5 % 11]) + f" {n}"} for n in range(ROWS)]
    (claim / "uneven.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return "uneven.jsonl"


def make_document(job: Job, path: str, case: dict[str, Any], **training: Any) -> dict[str, Any]:
    dataset = {"claim": {"name": "claim", "path": path}}
    if case["evaluated"]:
        dataset |= {"evalFraction": 0.25}
        training = {"evalSteps": 2, "perDeviceEvalBatchSize": 2} | training
    if case["packing"]:
        training |= {"packing": True, "packingStrategy": case["packing"], "maxLength": 24}
    given = {
        "numTrainEpochs": EPOCHS,
        "trainSamplingStrategy": case["order"],
        "gradientAccumulationSteps": case["accumulation"],
        "dataloaderNumWorkers": case["workers"],
        "activationCheckpointing": case["checkpointing"],
    } | training
    given["extra"] = {"shuffleDataset": case["shuffled"]} | given.get("extra", {})
    lora = {"lora": {"r": 4, "loraDropout": 0.2}} if case["method"] == "lora" else {}
    document = job(
        method=case["method"],
        dataset=dataset,
        training=given,
        checkpoint={"saveSteps": 1, "saveTotalLimit": 1000},
        **lora,
    )
    del document["spec"]["training"]["maxSteps"]
    return document


def read_rows(path: Path) -> Rows:
    found: Rows = {}
    for line in path.read_text().splitlines():
        step, *batch = json.loads(line)
        found.setdefault(step, []).append(batch)
    return found


def read_weights(output: Path) -> dict[str, bytes]:
    return {str(path.relative_to(output)): path.read_bytes() for path in output.glob("*/*.safetensors")}


def go_back(whole: Path, output: Path, step: int) -> None:
    """Make the folder of a run that was killed after the checkpoint of a step, with later lines of its log."""
    shutil.copytree(whole, output)
    (output / "manifest.json").unlink()
    for folder in output.glob("checkpoints/step-*"):
        if int(folder.name.removeprefix("step-")) > step:
            shutil.rmtree(folder)


def choose_steps(total: int, in_epoch: int, chance: random.Random) -> list[int]:
    """Choose where to stop: within each epoch, at the end of each, and just before the end; two of them in a sample."""
    within = [chance.randrange(first + 1, min(first + in_epoch, total)) for first in range(0, total - 1, in_epoch)]
    steps = sorted({*within, *range(in_epoch, total, in_epoch), total - 1, total} - {0})
    return steps if is_long() else sorted(chance.sample(steps, 2))


def check_everywhere(forks: Any, kill: Any, document: dict[str, Any], tmp_path: Path, key: str) -> None:
    """Compare an uninterrupted run with ones that resume from its checkpoints, and with ones stopped by SIGTERM."""
    whole = forks.run(document, tmp_path / "whole", rows=tmp_path / "whole-rows")
    assert whole.code == 0, whole.log
    expected, weights = read_rows(tmp_path / "whole-rows"), read_weights(whole.output)
    assert weights
    total, chance = max(expected), make_random(key)
    batches = [len(expected[step]) for step in sorted(expected)]
    in_epoch = max(1, round(total / document["spec"]["training"]["numTrainEpochs"]))
    for step in choose_steps(total, in_epoch, chance):
        output, rows = tmp_path / f"killed-{step}", tmp_path / f"killed-{step}-rows"
        go_back(whole.output, output, step)
        check_same(forks.run(document, output, rows=rows), whole, rows, expected, f"killed after step {step}")
        shutil.rmtree(output)
    for step in choose_steps(total, in_epoch, chance)[: None if is_long() else 1]:
        output, rows = tmp_path / f"stopped-{step}", tmp_path / f"stopped-{step}-rows"
        stopped = forks.run(document, output, kill(SIGTERM, "stepping", sum(batches[:step])), rows=rows)
        assert (stopped.code, stopped.message["progress"]["step"]) == (75, step), stopped.log
        check_same(forks.run(document, output, rows=rows), whole, rows, expected, f"stopped at step {step}")
        shutil.rmtree(output)


def check_same(ended: Any, whole: Any, rows: Path, expected: Rows, how: str) -> None:
    assert ended.code == 0, ended.log
    taken = read_rows(rows) if rows.exists() else {}
    assert taken == {step: expected[step] for step in taken}, how
    assert read_weights(ended.output) == read_weights(whole.output), how
    assert ended.manifest["digest"] == whole.manifest["digest"], how
    assert ended.metrics == whole.metrics, how


@pytest.mark.parametrize("case", sample(CASES, "same bytes", 5), ids=name)
def test_rows_and_bytes_do_not_depend_on_where_a_run_was_stopped(
    forks: Any, kill: Any, job: Job, uneven: str, tmp_path: Path, case: dict[str, Any]
) -> None:
    check_everywhere(forks, kill, make_document(job, uneven, case), tmp_path, name(case))


@pytest.mark.parametrize("training", sample(OTHERS, "same bytes of others", 2), ids=name)
def test_bytes_are_the_same_when_something_else_draws_numbers_or_keeps_a_state(
    forks: Any, kill: Any, job: Job, uneven: str, tmp_path: Path, training: dict[str, Any]
) -> None:
    case = {dimension: values[0] for dimension, values in DIMENSIONS.items()} | {"evaluated": True}
    check_everywhere(forks, kill, make_document(job, uneven, case, **training), tmp_path, name(training))


def test_bytes_are_the_same_in_the_order_that_profile_auto_chooses(
    forks: Any, kill: Any, job: Job, uneven: str, tmp_path: Path
) -> None:
    case = {dimension: values[0] for dimension, values in DIMENSIONS.items()} | {"order": None}
    document = make_document(job, uneven, case, profile="auto", perDeviceTrainBatchSize=2)
    check_everywhere(forks, kill, document, tmp_path, "profile auto, grouped")
    (choice,) = (
        choice
        for choice in json.loads((tmp_path / "whole/prepared/prepared.json").read_text())["plan"]["profile"]
        if choice["field"] == "train_sampling_strategy"
    )
    assert (choice["value"], choice["groupBatches"]) == ("group_by_length", 50)


@pytest.mark.parametrize(("method", "precision"), [("lora", "bf16FullEval"), ("full", "fp16FullEval")])
def test_bytes_are_the_same_when_the_next_start_does_the_last_evaluation(
    forks: Any, kill: Any, job: Job, uneven: str, tmp_path: Path, method: str, precision: str
) -> None:
    document = job(
        method=method,
        dataset={"claim": {"name": "claim", "path": uneven}, "evalFraction": 0.25},
        training={"maxSteps": 2, "extra": {precision: True}},
    )
    whole = forks.run(document, tmp_path / "whole")
    output = tmp_path / "stopped"
    # the first is the evaluation of the untouched model
    stopped = forks.run(document, output, kill(SIGTERM, "evaluating", 2))
    assert (stopped.code, stopped.message["progress"]["step"]) == (75, 2), stopped.log
    check_same(forks.run(document, output), whole, tmp_path / "no rows", {}, "stopped in the last evaluation")
    assert f"spec.training.extra.{precision} has no effect: evaluations compute as training does" in whole.log
