"""Profile auto in a run: what it chose stands in prepared.json and the log, and what is learned stays the same."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Job = Callable[..., dict[str, Any]]
Train = Callable[..., Any]


def auto(job: Job, **training: Any) -> dict[str, Any]:
    document = job()
    document["spec"]["training"] = {"maxSteps": 4, "loggingSteps": 1, "learningRate": 1e-2, **training}
    return document


def planned(done: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((done.output / "prepared/prepared.json").read_text())["plan"]
    return found


def test_what_was_chosen_is_told_and_used(job: Job, train: Train) -> None:
    done = train(auto(job))
    assert done.code == 0, done.log
    chosen = {choice["field"]: choice for choice in planned(done)["profile"]}
    assert chosen["activation_checkpointing"]["value"] is False
    for choice in chosen.values():
        assert f", since {choice['why']}" in done.log
    assert "profile: activationCheckpointing: false, since about" in done.log
    by_hand = {"profile": "none", "bf16": chosen["bf16"]["value"], "activationCheckpointing": False}
    same = train(auto(job, **by_hand))
    assert [line["loss"] for line in same.metrics] == [line["loss"] for line in done.metrics]
    assert planned(same)["profile"] == []


def test_what_is_learned_differs_by_no_more_than_rounding(job: Job, train: Train) -> None:
    done, plain = train(auto(job)), train(auto(job, profile="none", bf16=False))
    assert [line["loss"] for line in done.metrics] == pytest.approx([line["loss"] for line in plain.metrics], rel=1e-5)


def test_rows_of_unlike_lengths_are_grouped(job: Job, train: Train, claim: Path, tmp_path: Path) -> None:
    rows = [{"text": "word " * (80 if number % 5 == 0 else 4)} for number in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    document = auto(job)
    document["spec"]["dataset"] = {"claim": {"name": "data", "path": "rows.jsonl"}}
    done = train(document, claims={"claim": claim, "data": tmp_path}, command="prepare")
    chosen = {choice["field"]: choice for choice in planned(done)["profile"]}
    assert chosen["train_sampling_strategy"]["value"] == "group_by_length"
    assert "changes the order of rows" in done.log


def test_the_estimate_is_kept(job: Job, train: Train) -> None:
    done = train(auto(job), command="prepare")
    estimate = planned(done)["estimate"]
    assert f"memory: about {estimate['total'] / 2**30:.1f} GiB" in done.log
    parts = ("weights", "gradients", "optimizerStates", "activations", "logits", "communication", "allowance")
    assert estimate["total"] == sum(estimate[part] for part in parts)
    assert estimate["weights"] > 4 * 40_000
