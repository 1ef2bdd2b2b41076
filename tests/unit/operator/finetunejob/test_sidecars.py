"""Pods that other containers keep running after the trainer's end: the result counts, and the GPUs become free."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from held_pods import held
from hone_operator.finetunejob import jobs
from hone_operator.finetunejob.plan import plan_finetunejob
from hone_operator.objects.timestamps import format_timestamp
from hone_operator.reconcile.plan import Delete, Patch
from observed import (
    IMAGE,
    NOW,
    PREPARED,
    failure,
    job_object,
    observed_job,
    parsed_job,
    pod,
    stored,
    success,
    terminated,
)

Object = dict[str, Any]
OWNER = job_object(resources={"gpus": 8}, status=PREPARED | {"observedGeneration": 1, "stage": "Saving"})


def observe_after(*pods: Object, seconds: float = 60, **more: Any) -> Any:
    """Return the snapshot of a job whose pods have been held for so many seconds."""
    observed = observed_job(more.pop("owner", OWNER), *pods, **more)
    return replace(observed, held_since={pod["metadata"]["uid"]: NOW - timedelta(seconds=seconds) for pod in pods})


def running(status: Object) -> Object:
    return next(c for c in status["conditions"] if c["type"] == "Running")


@pytest.mark.parametrize("sidecar", [None, {"waiting": {"reason": "ImagePullBackOff"}}])
def test_a_success_is_read_from_the_pod_and_the_job_is_removed(sidecar: Object | None) -> None:
    found = plan_finetunejob(observe_after(held(terminated(0, success()), sidecar=sidecar)), NOW)
    assert found.status["stage"] == "Succeeded"
    assert found.status["artifact"]["digest"] == success()["artifact"]["digest"]
    assert [(type(one), one.name) for one in found.actions] == [(Delete, "faq-train")]


def test_a_success_without_an_artifact_is_a_failure_all_the_same() -> None:
    found = plan_finetunejob(observe_after(held(terminated(0))), NOW)
    assert (found.status["stage"], running(found.status)["reason"]) == ("Failed", "ArtifactMissing")
    assert [type(one) for one in found.actions] == [Delete]


def test_preparing_that_succeeded_lets_training_begin() -> None:
    owner = job_object(resources={"gpus": 8})
    prepare = stored(jobs.build_prepare_job(owner, parsed_job(owner), IMAGE, None), uid="uid-prepare")
    message = {"outcome": "Succeeded", "reason": "Succeeded", "message": "Prepared 7 rows."}
    observed = observed_job(owner)
    observed.job, observed.prepare_job = None, prepare
    observed.prepare_pods = [held(terminated(0, message), container="prepare")]
    observed.held_since = {"uid-p1": NOW - timedelta(minutes=1)}
    found = plan_finetunejob(observed, NOW)
    prepared = next(c for c in found.status["conditions"] if c["type"] == "Prepared")
    assert (prepared["status"], prepared["message"]) == ("True", "Prepared 7 rows.")
    assert [(type(one), one.name) for one in found.actions] == [(Delete, "faq-prepare")]


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (terminated(65, failure("DatasetInvalid", "row 7 is broken")), "row 7 is broken"),
        (terminated(75, failure("Interrupted", "told to stop")), "told to stop"),
        (terminated(137, reason="OOMKilled"), "ran out of memory"),
        (terminated(71, failure("HubUnreachable", "no route")), "no route"),
    ],
)
def test_a_failed_pod_is_ended_so_that_its_jobs_rules_apply(state: Object, words: str) -> None:
    one = held(state)
    found = plan_finetunejob(observe_after(one), NOW)
    assert found.actions == [Patch(found.actions[0].resource, "p1", {"spec": {"activeDeadlineSeconds": 1}})]
    told = running(found.status)
    assert (told["status"], told["reason"]) == ("False", "SidecarRunning")
    for said in ("istio-proxy", words, "sidecar.istio.io/inject: 'false'"):
        assert said in told["message"]
    one["spec"]["activeDeadlineSeconds"] = 1
    assert plan_finetunejob(observe_after(one), NOW).actions == []


def test_preparing_that_failed_is_ended_as_well() -> None:
    owner = job_object(resources={"gpus": 8})
    observed = observed_job(owner)
    observed.prepare_job = stored(jobs.build_prepare_job(owner, parsed_job(owner), IMAGE, None), uid="uid-prepare")
    observed.job = None
    observed.prepare_pods = [held(terminated(65, failure("DatasetEmpty", "no rows")), container="prepare")]
    observed.held_since = {"uid-p1": NOW - timedelta(minutes=1)}
    found = plan_finetunejob(observed, NOW)
    assert [type(one) for one in found.actions] == [Patch]
    assert running(found.status)["reason"] == "SidecarRunning"


@pytest.mark.parametrize("clock", [-3600, -20, 0, 3600, 10**9])
@pytest.mark.parametrize("state", [terminated(0, success()), terminated(70, failure("InternalError", "x"))])
def test_other_containers_get_time_to_end_with_any_clock_of_their_node(state: Object, clock: int) -> None:
    ended = state | {"finishedAt": format_timestamp(NOW + timedelta(seconds=clock))}
    for seen, left in ((0, 30), (20, 10), (-5, 30)):
        found = plan_finetunejob(observe_after(held(ended), seconds=seen), NOW)
        assert found.actions == []
        assert running(found.status)["reason"] == "TrainerEnded"
        assert found.requeue_after_seconds == left
    assert plan_finetunejob(observed_job(OWNER, held(ended)), NOW).requeue_after_seconds == 30
    assert plan_finetunejob(observe_after(held(ended), seconds=30), NOW).actions != []


def test_native_sidecars_do_not_hold_a_pod() -> None:
    one = pod(terminated=terminated(0, success()))
    one["status"]["initContainerStatuses"] = [{"name": "istio-proxy", "restartCount": 0, "state": {"running": {}}}]
    assert plan_finetunejob(observed_job(OWNER, one), NOW).actions == []


def test_the_nodes_of_several_must_all_have_succeeded() -> None:
    owner = job_object(resources={"gpus": 8, "nodes": 2}, status=PREPARED | {"observedGeneration": 1})
    first = held(terminated(0, success()), "p1", index=0)
    second = pod("p2", running={"startedAt": "2026-03-01T11:00:00Z"})
    second["metadata"]["labels"] = {"batch.kubernetes.io/job-completion-index": "1"}
    found = plan_finetunejob(observed_job(owner, first, second), NOW)
    assert found.status["stage"] != "Succeeded"
    assert not [one for one in found.actions if isinstance(one, Delete | Patch)]
    done = plan_finetunejob(observe_after(first, held(terminated(0, success()), "p2", index=1), owner=owner), NOW)
    assert done.status["stage"] == "Succeeded"
    mixed = plan_finetunejob(
        observe_after(first, held(terminated(71, failure("HubUnreachable", "x")), "p2", index=1), owner=owner), NOW
    )
    assert [one.name for one in mixed.actions if isinstance(one, Patch)] == ["p2"]
