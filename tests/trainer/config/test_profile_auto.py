"""Profile auto in a run: its choices are in prepared.json and the log, and what is learned stays the same."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hone_trainer.preparation import prepared_dir

Job = Callable[..., dict[str, Any]]
Train = Callable[..., Any]


def auto(job: Job, method: str = "lora", **training: Any) -> dict[str, Any]:
    document = job(method=method)
    document["spec"]["training"] = {"maxSteps": 4, "loggingSteps": 1, "learningRate": 1e-2, **training}
    return document


def planned(done: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((done.output / "prepared/prepared.json").read_text())["plan"]
    return found


def values(done: Any) -> dict[str, Any]:
    return {choice["field"]: choice["value"] for choice in planned(done)["profile"]}


def test_the_choices_are_printed_and_used(job: Job, train: Train) -> None:
    done = train(auto(job))
    assert done.code == 0, done.log
    chosen = {choice["field"]: choice for choice in planned(done)["profile"]}
    assert chosen["activation_checkpointing"]["value"] is False
    for choice in chosen.values():
        assert f", since {choice['why']}" in done.log
    assert "profile: activationCheckpointing: false, since about" in done.log
    by_hand = {"profile": "none", "bf16": chosen["bf16"]["value"], "activationCheckpointing": False}
    by_hand |= {"perDeviceTrainBatchSize": 1, "gradientAccumulationSteps": 8}
    same = train(auto(job, **by_hand))
    assert [line["loss"] for line in same.metrics] == [line["loss"] for line in done.metrics]
    assert planned(same)["profile"] == []


@pytest.fixture
def train_unlike(train: Train, claim: Path, tmp_path: Path) -> Train:
    """Train as `train` does, with a dataset whose rows have different lengths."""
    rows = [{"text": f"{number} " + "word " * (80 if number % 5 == 0 else 4)} for number in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(document: dict[str, Any], **where: Any) -> Any:
        document["spec"]["dataset"] = {"claim": {"name": "data", "path": "rows.jsonl"}}
        return train(document, claims={"claim": claim, "data": tmp_path}, **where)

    return run


@pytest.mark.parametrize("method", ["lora", "full"])
def test_what_is_learned_differs_only_by_rounding(job: Job, train_unlike: Train, method: str) -> None:
    """Train row by row, where eight rows of different lengths share a batch: the loss is the mean over all tokens."""
    done = train_unlike(auto(job, method=method, bf16=False))
    assert {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8}.items() <= values(done).items()
    plain = train_unlike(auto(job, method=method, profile="none", bf16=False))
    for name in ("loss", "grad_norm"):
        found, expected = ([line[name] for line in run.metrics if name in line] for run in (done, plain))
        assert len(found) == 4
        assert found == pytest.approx(expected, rel=1e-4)


def test_rows_of_different_lengths_that_share_a_batch_are_grouped(job: Job, train_unlike: Train) -> None:
    done = train_unlike(auto(job, perDeviceTrainBatchSize=4), command="prepare")
    chosen = {choice["field"]: choice for choice in planned(done)["profile"]}
    assert chosen["train_sampling_strategy"]["value"] == "group_by_length"
    assert "changes the order of rows" in done.log


def test_a_prepared_folder_of_an_earlier_version_keeps_the_order_of_transformers(job: Job, train_unlike: Train) -> None:
    """Remove the field that an earlier version did not write, and compare with a run without a profile."""
    document = auto(job, perDeviceTrainBatchSize=4)
    present = train_unlike(document)
    prepared = train_unlike(document, command="prepare")
    path = prepared.output / "prepared/prepared.json"
    content = json.loads(path.read_text())
    (grouped,) = (choice for choice in content["plan"]["profile"] if choice["field"] == "train_sampling_strategy")
    del grouped["groupBatches"]
    del content[prepared_dir.CHECKSUM]
    path.write_text(json.dumps(content | {prepared_dir.CHECKSUM: prepared_dir.checksum_content(content)}))
    earlier = train_unlike(document, output=prepared.output)
    chosen = {"bf16": values(present)["bf16"], "activationCheckpointing": False}
    by_hand = {"profile": "none", "trainSamplingStrategy": "group_by_length", **chosen}
    plain = train_unlike(auto(job, perDeviceTrainBatchSize=4, **by_hand))
    losses = [[line["loss"] for line in run.metrics if "loss" in line] for run in (earlier, plain, present)]
    assert len(losses[0]) == 4
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]


def test_the_estimate_is_kept(job: Job, train: Train) -> None:
    done = train(auto(job), command="prepare")
    estimate = planned(done)["estimate"]
    assert f"memory: about {estimate['total'] / 2**30:.1f} GiB" in done.log
    parts = ("weights", "gradients", "optimizerStates", "activations", "logits", "communication", "allowance")
    assert estimate["total"] == sum(estimate[part] for part in parts)
    assert estimate["weights"] > 4 * 40_000
