"""`hone watch` describes a FineTuneJob."""

from typing import Any

import pytest
from hone.objects import job_progress
from hone_api.schema.crd import UNOBSERVED


def job(stage: str, *conditions: tuple[str, str, str, str], **status: Any) -> job_progress.Job:
    listed = [dict(zip(("type", "status", "reason", "message"), condition, strict=True)) for condition in conditions]
    return {"metadata": {"name": "faq"}, "status": {"stage": stage, "conditions": listed, **status}}


RUNNING = ("Running", "True", "TrainerRunning", "the trainer runs")


def test_a_running_job_shows_its_figures() -> None:
    numbers = {"step": 40, "totalSteps": 120, "percent": 33, "loss": 1.23456, "tokensPerSecond": 5120.4, "eta": 200}
    seen = job_progress.make_progress_line(job("Training", RUNNING, progress=numbers))
    assert seen == job_progress.ProgressLine(
        "Training", 33, "step 40/120 · loss 1.2346 · 5,120 tokens/s · 3m 20s left", None
    )


def test_figures_that_are_not_known_are_left_out() -> None:
    assert job_progress.format_figures({"step": 0, "totalSteps": 120}) == "step 0/120"
    assert job_progress.format_figures({}) == ""


def test_a_waiting_job_shows_its_reason() -> None:
    waiting = job("Pending", ("Accepted", "True", "Valid", ""), ("Running", "False", "Unschedulable", "no amd.com/gpu"))
    assert job_progress.make_progress_line(waiting).waiting == "Unschedulable: no amd.com/gpu"
    refused = job("Pending", ("Accepted", "False", "InvalidSpec", "spec.lora"), ("Running", "False", "Waiting", "…"))
    assert job_progress.make_progress_line(refused).waiting == "InvalidSpec: spec.lora"


def test_a_job_without_an_operator_is_reported() -> None:
    seen = job_progress.make_progress_line({"metadata": {"name": "faq"}})
    assert (seen.stage, seen.percent) == ("Pending", 0)
    assert seen.waiting is not None
    assert "operator" in seen.waiting


@pytest.mark.parametrize(
    ("stage", "outcome"),
    [
        ("Pending", None),
        ("Preparing", None),
        ("Training", None),
        ("Saving", None),
        ("Succeeded", True),
        ("Failed", False),
    ],
)
def test_outcome(stage: str, outcome: bool | None) -> None:
    assert job_progress.has_succeeded(job(stage)) is outcome


def test_the_result_names_artifact_digest_and_metrics() -> None:
    artifact = {
        "kind": "adapter",
        "claim": "faq",
        "path": "default/faq",
        "digest": "sha256:abc",
        "baseModel": "tiny/base",
        "baseRevision": "0123",
    }
    lines = job_progress.describe_result(
        job("Succeeded", artifact=artifact, metrics={"trainRuntime": 12.0, "trainLoss": 0.51234567})
    )
    assert lines == [
        "artifact  adapter on claim faq, in folder default/faq",
        "digest    sha256:abc",
        "base      tiny/base 0123",
        "trainLoss  0.512346",
        "trainRuntime  12",
    ]


def test_a_failure_has_reason_and_message() -> None:
    failed = job("Failed", ("Failed", "True", "DatasetEmpty", "No rows. Check spec.dataset.split."))
    assert job_progress.explain_failure(failed) == "DatasetEmpty: No rows. Check spec.dataset.split."
    assert job_progress.explain_failure(job("Failed")) == "Failed: the operator gave no reason"


@pytest.mark.parametrize(("seconds", "text"), [(0, "0s"), (59.6, "1m 0s"), (200, "3m 20s"), (7500, "2h 5m")])
def test_durations(seconds: float, text: str) -> None:
    assert job_progress.format_duration(seconds) == text


def test_a_job_that_no_operator_has_looked_at_has_no_status_yet() -> None:
    assert "no status yet" in (job_progress.explain_waiting({"status": UNOBSERVED}) or "")
