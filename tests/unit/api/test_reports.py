"""The trainer's reports fit their limits of size."""

import json

import pytest
from hone_api.artifacts.memory_estimate import Estimate
from hone_api.artifacts.trainer_reports import (
    TERMINATION_MESSAGE_BYTES,
    ArtifactSummary,
    Progress,
    ProgressReport,
    TerminationMessage,
)

PROGRESS = Progress(step=10, total_steps=20, epoch=0.5, loss=1.25, percent=50, eta=30)


def failure(message: str) -> TerminationMessage:
    return TerminationMessage(outcome="Failed", reason="OutOfMemory", message=message, progress=PROGRESS)


def test_round_trip() -> None:
    artifact = ArtifactSummary(kind="adapter", digest="sha256:0", base_model="a/b")
    said = TerminationMessage(
        outcome="Succeeded", reason="Completed", message="done", metrics={"trainLoss": 0.5}, artifact=artifact
    )
    assert TerminationMessage.model_validate_json(said.to_bytes()) == said


@pytest.mark.parametrize("message", ["x" * 10_000, "ü" * 4000, '"\\\n' * 3000, "🔥" * 2000, "x" * 3800])
def test_a_long_message_is_cut_to_fit(message: str) -> None:
    said = failure(message).to_bytes()
    assert len(said) <= TERMINATION_MESSAGE_BYTES
    heard = TerminationMessage.model_validate_json(said)
    assert heard.reason == "OutOfMemory"
    assert heard.progress == PROGRESS
    kept = heard.message.removesuffix(" …")
    assert message.startswith(kept)
    assert len(kept) > 100


def test_the_estimate_stays_when_the_message_is_cut() -> None:
    parts = dict.fromkeys(
        ("weights", "gradients", "optimizer_states", "activations", "logits", "communication"), 10**12
    )
    estimate = Estimate(
        processes=8, batch=64, length=131072, peak="embedding", allowance=10**12, total=7 * 10**12, **parts
    )
    said = failure("x" * 10_000).model_copy(update={"estimate": estimate}).to_bytes()
    assert len(said) <= TERMINATION_MESSAGE_BYTES
    assert TerminationMessage.model_validate_json(said).estimate == estimate


def test_a_message_that_fits_is_not_cut() -> None:
    assert TerminationMessage.model_validate_json(failure("x" * 3000).to_bytes()).message == "x" * 3000


def test_the_wire_is_camel_case_without_nulls() -> None:
    report = json.loads(
        ProgressReport(stage="Training", progress=PROGRESS).model_dump_json(by_alias=True, exclude_none=True)
    )
    assert report["progress"]["totalSteps"] == 20
    assert "gradNorm" not in report["progress"]


def test_too_many_metrics_are_left_out() -> None:
    said = failure("The loss is NaN.").model_copy(update={"metrics": {f"metric{i}": 0.5 for i in range(1000)}})
    heard = TerminationMessage.model_validate_json(said.to_bytes())
    assert (heard.message, heard.metrics) == ("The loss is NaN.", {})
