"""Running trainers that are not well: lost with their node, silent, or without steps."""

from datetime import timedelta
from typing import Any

import pytest
from hone_api.artifacts.trainer_reports import ProgressReport
from hone_operator.diagnosis.liveness import LivenessLimits, TrainerHealth, is_suspect, judge_trainer
from hone_operator.diagnosis.nodes import ClusterNodes, Node
from hone_operator.finetunejob.plan import plan_finetunejob
from hone_operator.objects.timestamps import format_timestamp
from observed import BEFORE, NOW, conditions, job_object, message, observed_job, pod

PATIENCE = LivenessLimits()
RUNNING = pod(running={"startedAt": BEFORE})
RUNNING["spec"]["nodeName"] = "gpu-1"
LOST = Node(
    "gpu-1", not_ready_reason="since 2026-03-01T11:50:00Z, NodeStatusUnknown: Kubelet stopped posting node status."
)


def ago(**time: float) -> str:
    return (NOW - timedelta(**time)).isoformat().replace("+00:00", "Z")


def report(*, updated: str, stage: str = "Training", step: int = 100, eta: int | None = 900) -> ProgressReport:
    progress = {"step": step, "totalSteps": 1000, "eta": eta, "updatedAt": updated}
    return ProgressReport.model_validate({"stage": stage, "progress": progress})


def judged(
    found: ProgressReport | None, *, silent_minutes: float = 0, facts: ClusterNodes | None = None
) -> TrainerHealth:
    return judge_trainer(RUNNING, found, NOW - timedelta(minutes=silent_minutes), facts, NOW, PATIENCE)


@pytest.mark.parametrize(
    ("found", "stalled"),
    [
        (report(updated=ago(minutes=9)), False),  # a step takes 1 s; an evaluation takes minutes
        (report(updated=ago(minutes=11)), True),
        (report(updated=ago(minutes=19), eta=60 * 900), False),  # a step takes a minute
        (report(updated=ago(minutes=21), eta=60 * 900), True),
        (report(updated=ago(minutes=29), step=0, eta=None), False),  # no step yet
        (report(updated=ago(minutes=31), step=0, eta=None), True),
        (report(updated=ago(minutes=9), step=1000, eta=0), False),
        (report(updated=ago(hours=9), stage="Saving"), False),
        (report(updated=ago(hours=9), stage="Preparing"), False),
        (None, False),
    ],
)
def test_no_step_for_far_longer_than_a_step_takes(found: ProgressReport | None, stalled: bool) -> None:
    error = judged(found).error
    assert (error is not None and error.reason.name == "Stalled") == stalled
    assert stalled or error is None


def test_a_stall_is_reported_with_numbers() -> None:
    error = judged(report(updated=ago(minutes=21), eta=60 * 900)).error
    assert error
    assert error.message == (
        "Pod p1 answers, and has made no step since 2026-03-01T11:39:00Z, when 100 of 1000 were done; a step takes "
        "about 60 s, and more than 20 minutes is too long"
    )


def test_silence_is_reported_with_its_beginning() -> None:
    assert judged(None, silent_minutes=4).error is None
    error = judged(report(updated=ago(minutes=6)), silent_minutes=6).error
    assert error
    assert error.reason.name == "TrainerSilent"
    assert "port 8080 has not answered since 2026-03-01T11:54:00Z" in error.message


def test_a_lost_node_explains_the_silence() -> None:
    error = judged(None, silent_minutes=6, facts=ClusterNodes((LOST,))).error
    assert error
    assert error.reason.name == "NodeLost"
    assert "gpu-1, which is not ready since 2026-03-01T11:50:00Z, NodeStatusUnknown" in error.message
    assert "gives the pod up when this lasts" in error.message
    gone = judged(None, facts=ClusterNodes(())).error
    assert gone
    assert "node gpu-1, which is gone" in gone.message
    assert judged(None, facts=ClusterNodes((Node("gpu-1"),))).error is None


@pytest.mark.parametrize(
    ("found", "seconds"),
    [
        (None, 300),
        (report(updated=ago(minutes=9)), 60),
        (report(updated=ago(minutes=11)), 20),
    ],
)
def test_the_next_look_is_when_time_alone_may_change_the_answer(found: ProgressReport | None, seconds: float) -> None:
    assert judged(found).recheck_seconds == seconds


def test_a_suspect_pod_is_checked_again_soon() -> None:
    unready = RUNNING | {"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "False"}]}}
    found = judge_trainer(unready, None, NOW, ClusterNodes((Node("gpu-1"),)), NOW, PATIENCE)
    assert (found.error, found.recheck_seconds) == (None, 20)


@pytest.mark.parametrize(
    ("change", "silent", "suspect"),
    [
        ({}, 0, False),
        ({}, 6, True),
        ({"metadata": {"deletionTimestamp": BEFORE}}, 0, True),
        ({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "False"}]}}, 0, True),
        ({"status": {"phase": "Pending", "conditions": [{"type": "Ready", "status": "False"}]}}, 0, False),
    ],
)
def test_the_node_is_checked_when_a_pod_is_suspect(change: dict[str, Any], silent: float, suspect: bool) -> None:
    assert is_suspect(RUNNING | change, NOW - timedelta(minutes=silent), NOW, PATIENCE) == suspect


def test_a_reported_job_keeps_running_and_gets_one_event() -> None:
    stalled = {"uid-p1": report(updated=ago(minutes=11))}
    heard = {"uid-p1": NOW}
    before = NOW - timedelta(minutes=11)
    first = plan_finetunejob(observed_job(job_object(), RUNNING, reports=stalled, last_answer_at=heard), before).status
    second = plan_finetunejob(
        observed_job(job_object(status=first), RUNNING, reports=stalled, last_answer_at=heard), NOW
    )
    assert conditions(second.status)["Running"] == ("True", "Stalled")
    assert [(event.type, event.reason) for event in second.events] == [("Warning", "Stalled")]
    third = plan_finetunejob(
        observed_job(job_object(status=second.status), RUNNING, reports=stalled, last_answer_at=heard), NOW
    )
    assert (third.status, third.events) == (second.status, [])
    moving = {"uid-p1": report(updated=ago(seconds=1))}
    fourth = plan_finetunejob(
        observed_job(job_object(status=second.status), RUNNING, reports=moving, last_answer_at=heard), NOW
    )
    assert conditions(fourth.status)["Running"] == ("True", "TrainerRunning")
    assert [(event.type, event.reason) for event in fourth.events] == [("Normal", "TrainerRunning")]
    assert "no step" not in message(fourth.status, "Running")


def test_a_terminating_trainer_counts_as_running_until_it_has_ended() -> None:
    leaving = RUNNING | {"metadata": RUNNING["metadata"] | {"deletionTimestamp": BEFORE}}
    found = plan_finetunejob(observed_job(job_object(), leaving, last_answer_at={"uid-p1": NOW}), NOW)
    assert conditions(found.status)["Running"] == ("True", "TrainerStopping")


@pytest.mark.parametrize("wrong", [-12, 12])
def test_a_wrong_clock_of_the_node_makes_no_stall(wrong: int) -> None:
    status = job_object().get("status")
    for minute in range(30):
        now = NOW + timedelta(minutes=minute)
        told = {"uid-p1": report(step=minute + 1, updated=format_timestamp(now + timedelta(minutes=wrong)))}
        status = plan_finetunejob(
            observed_job(job_object(status=status), RUNNING, reports=told, last_answer_at={"uid-p1": now}), now
        ).status
        assert conditions(status)["Running"] == ("True", "TrainerRunning")
    later = NOW + timedelta(minutes=29 + 120)
    stuck = plan_finetunejob(
        observed_job(job_object(status=status), RUNNING, reports=told, last_answer_at={"uid-p1": later}), later
    ).status
    assert conditions(stuck)["Running"] == ("True", "Stalled")


def test_a_trainer_that_is_started_again_at_the_same_step_is_not_stalled() -> None:
    old, now = {"uid-p1": report(updated=ago(minutes=11))}, NOW + timedelta(hours=2)
    status = plan_finetunejob(
        observed_job(job_object(), RUNNING, reports=old, last_answer_at={"uid-p1": NOW}), NOW
    ).status
    again = {"uid-p1": report(updated=format_timestamp(now))}
    found = plan_finetunejob(
        observed_job(job_object(status=status), RUNNING, reports=again, last_answer_at={"uid-p1": now}), now
    )
    assert conditions(found.status)["Running"] == ("True", "TrainerRunning")


@pytest.mark.parametrize("reason", ["TrainerSilent", "Stalled"])
def test_a_restart_of_the_operator_keeps_the_reported_trouble(reason: str) -> None:
    owner = job_object()
    told = report(updated=ago(hours=1))
    silent = {"uid-p1": NOW - timedelta(hours=1 if reason == "TrainerSilent" else 0)}
    observed = observed_job(owner, RUNNING, reports={"uid-p1": told}, last_answer_at=silent)
    owner["status"] = {"progress": told.progress.to_wire() | {"observedAt": ago(hours=1)}} if told.progress else {}
    owner["status"] = plan_finetunejob(observed, NOW).status
    assert conditions(owner["status"])["Running"] == ("True", reason)
    observed.reports, observed.last_answer_at = {}, {"uid-p1": NOW}
    found = plan_finetunejob(observed, NOW)
    assert (found.status["conditions"], found.events) == (owner["status"]["conditions"], [])
    assert found.requeue_after_seconds == 20
    observed.reports = {"uid-p1": report(updated=ago(minutes=0), step=101)}
    assert conditions(plan_finetunejob(observed, NOW).status)["Running"] == ("True", "TrainerRunning")
    observed.reports, observed.last_answer_at = {}, {"uid-p1": NOW - timedelta(minutes=6)}
    found = plan_finetunejob(observed, NOW)
    assert conditions(found.status)["Running"] == ("True", "TrainerSilent")
    assert (found.events == []) is (reason == "TrainerSilent")
    observed.last_answer_at = {"uid-p1": NOW}
    observed.pods = [RUNNING | {"metadata": RUNNING["metadata"] | {"name": "p2"}}]
    assert conditions(plan_finetunejob(observed, NOW).status)["Running"] == ("True", "TrainerRunning")
