"""The plan for a FineTuneJob in each situation."""

import json
from datetime import datetime, timedelta
from typing import Any

import pytest
from hone_api.artifacts.trainer_reports import ProgressReport
from hone_api.reasons import INVALID_SPEC, HoneError
from hone_operator.diagnosis.admission import explain_refusal
from hone_operator.diagnosis.nodes import ClusterNodes, Node
from hone_operator.finetunejob.plan import plan_finetunejob
from hone_operator.finetunejob.snapshot import ObservedFineTuneJob
from hone_operator.finetunejob.status import build_progress_patch
from hone_operator.objects.resources import CLAIMS, CONFIGMAPS, JOBS, build_merge_patch
from hone_operator.objects.timestamps import format_timestamp
from hone_operator.reconcile.plan import Apply, Create, Delete, Patch
from hone_operator.reconcile.sync_failures import SyncFailure
from observed import (
    BEFORE,
    DIGEST,
    IMAGE,
    NOW,
    PREPARED,
    conditions,
    failure,
    foreign,
    job_condition,
    job_object,
    message,
    observed_job,
    of_predecessor,
    parsed_job,
    pod,
    success,
    terminated,
    unschedulable,
)


def new(owner: dict[str, Any]) -> ObservedFineTuneJob:
    return ObservedFineTuneJob(owner, parsed_job(owner), IMAGE)


def test_a_new_object_gets_job_manifest_and_claim() -> None:
    found = plan_finetunejob(new(job_object()), NOW)
    assert [(type(a), a.resource) for a in found.actions] == [(Create, JOBS), (Create, CONFIGMAPS), (Create, CLAIMS)]


def test_no_claim_is_made_where_one_is_named_or_exists() -> None:
    found = plan_finetunejob(new(job_object(output={"claim": {"name": "mine"}})), NOW)
    assert CLAIMS not in [action.resource for action in found.actions]
    assert plan_finetunejob(observed_job(job_object()), NOW).actions == []


def test_the_manifest_is_the_object_without_what_the_server_added() -> None:
    [manifest] = [a.body for a in plan_finetunejob(new(job_object()), NOW).actions if a.resource is CONFIGMAPS]  # type: ignore[union-attr]
    document = json.loads(manifest["data"]["finetunejob.yaml"])
    assert document["metadata"] == {"name": "faq", "namespace": "team"}
    assert document["spec"] == job_object()["spec"]
    assert set(document) == {"apiVersion", "kind", "metadata", "spec"}


def test_the_pods_options_stay_out_of_the_manifest() -> None:
    options = {"env": [{"name": "HTTPS_PROXY", "value": "http://user:hunter2@proxy"}], "annotations": {"a": "hunter2"}}
    actions = {a.resource: a.body for a in plan_finetunejob(new(job_object(pod=options)), NOW).actions}  # type: ignore[union-attr]
    assert "hunter2" in json.dumps(actions[JOBS])
    assert "hunter2" not in json.dumps(actions[CONFIGMAPS])


def test_a_running_trainer_is_polled_and_reported() -> None:
    running = pod(running={"startedAt": BEFORE})
    report = ProgressReport.model_validate({"stage": "Training", "progress": {"step": 3, "totalSteps": 9}})
    found = plan_finetunejob(observed_job(job_object(), running, reports={"uid-p1": report}), NOW)
    assert found.poll_urls == {"uid-p1": "http://10.0.0.7:8080/progress"}
    assert found.status["stage"] == "Training"
    assert found.status["progress"]["step"] == 3
    assert found.status["startTime"] == BEFORE
    assert conditions(found.status)["Running"] == ("True", "TrainerRunning")


def reported(step: int, stage: str = "Training", **parameters: int) -> ProgressReport:
    report = {"stage": stage, "progress": {"step": step, "totalSteps": 9}}
    return ProgressReport.model_validate(report | ({"parameters": parameters} if parameters else {}))


RUNNING = pod(running={"startedAt": format_timestamp(NOW - timedelta(seconds=50))})


def trained(step: int, status: dict[str, Any] | None = None, now: datetime = NOW) -> dict[str, Any]:
    owner = job_object(status=status, resources={"gpus": 2})
    observed = observed_job(owner, RUNNING, trainer_pods=[RUNNING], reports={"uid-p1": reported(step)})
    return plan_finetunejob(observed, now).status


@pytest.mark.parametrize("seconds", [0, 60])
def test_new_steps_need_no_full_pass_and_give_the_same_status(seconds: int) -> None:
    before, now = trained(3, PREPARED), NOW + timedelta(seconds=seconds)
    owner = job_object(status=before, resources={"gpus": 2})
    patch = build_progress_patch(owner, reported(4), [RUNNING], now)
    after = trained(4, before, now)
    assert patch == build_merge_patch(before, after)
    assert patch is not None
    assert patch["progress"] == {"step": 4} | ({"observedAt": format_timestamp(now)} if seconds else {})
    assert patch.get("gpuSeconds") == (220 if seconds else None)
    assert build_progress_patch(job_object(status=after, resources={"gpus": 2}), reported(4), [RUNNING], now) == {}


@pytest.mark.parametrize(
    ("report", "status"),
    [
        (reported(4, "Saving"), {}),
        (reported(4, trainable=1, total=2), {}),
        (ProgressReport.model_validate({"stage": "Training"}), {}),
        (reported(4), {"conditions": [{"type": "Running", "status": "True", "reason": "Stalled"}]}),
        (reported(4), {"conditions": []}),
    ],
)
def test_any_change_other_than_steps_needs_a_full_pass(report: ProgressReport, status: dict[str, Any]) -> None:
    owner = job_object(status=trained(3, PREPARED) | status, resources={"gpus": 2})
    assert build_progress_patch(owner, report, [RUNNING], NOW) is None


def test_a_trainer_without_a_report_counts_as_preparing() -> None:
    assert (
        plan_finetunejob(observed_job(job_object(), pod(running={"startedAt": BEFORE})), NOW).status["stage"]
        == "Preparing"
    )


def test_success_keeps_the_trainers_last_report() -> None:
    done = observed_job(
        job_object(), pod(terminated=terminated(0, success())), job_conditions=[job_condition("Complete")]
    )
    found = plan_finetunejob(done, NOW)
    assert found.status["stage"] == "Succeeded"
    assert found.status["artifact"] == {
        "kind": "adapter",
        "claim": "faq",
        "path": "team/faq",
        "digest": DIGEST,
        "baseModel": "org/base",
    }
    assert found.status["metrics"] == {"trainLoss": 0.5}
    assert found.status["progress"]["percent"] == 100
    assert (found.status["startTime"], found.status["completionTime"]) == (BEFORE, BEFORE)
    assert {type_: status for type_, (status, _) in conditions(found.status).items()} == {
        "Accepted": "True",
        "Running": "False",
        "Succeeded": "True",
        "Failed": "False",
        "Ready": "True",
    }
    assert [event.reason for event in found.events] == ["Succeeded"]


@pytest.mark.parametrize(
    "state", [terminated(0, success()), terminated(65, failure("DatasetColumnMissing", "no column 'text'"))]
)
def test_between_a_trainers_final_end_and_the_jobs_the_stage_is_kept(state: dict[str, Any]) -> None:
    before = {"stage": "Saving"}
    found = plan_finetunejob(observed_job(job_object(status=before), pod(terminated=state)), NOW)
    assert found.status["stage"] == "Saving"
    assert conditions(found.status)["Running"] == ("False", "TrainerEnded")
    assert found.events == []


@pytest.mark.parametrize(("seconds", "told"), [(2, False), (30, True)])
def test_the_end_of_a_trainer_is_reported_only_when_its_job_is_late_to_report_it(seconds: int, told: bool) -> None:
    ended = terminated(0, success()) | {"finishedAt": format_timestamp(NOW - timedelta(seconds=seconds))}
    before = {"stage": "Saving", "observedGeneration": 1}
    found = plan_finetunejob(observed_job(job_object(status=before), pod(terminated=ended)), NOW)
    assert found.requeue_after_seconds == (None if told else 10)
    assert (found.status != before) == told


def test_the_status_for_a_spec_that_changed_at_the_end_is_written_at_once() -> None:
    ended = terminated(0, success()) | {"finishedAt": format_timestamp(NOW)}
    found = plan_finetunejob(
        observed_job(job_object(status={"stage": "Saving", "observedGeneration": 0}), pod(terminated=ended)), NOW
    )
    assert found.status["observedGeneration"] == 1


@pytest.mark.parametrize(("minutes", "seconds"), [(0, 20), (1, 20), (5, 60), (25, 300), (600, 300)])
def test_a_long_wait_is_checked_ever_less_often(minutes: int, seconds: float) -> None:
    waits = pod(waiting={"reason": "ContainerCreating"})
    waits["metadata"]["creationTimestamp"] = format_timestamp(NOW - timedelta(minutes=minutes))
    assert plan_finetunejob(observed_job(job_object(), waits), NOW).requeue_after_seconds == seconds


def test_a_result_whose_pod_is_gone_is_produced_again_by_a_new_trainer() -> None:
    found = plan_finetunejob(observed_job(job_object(), job_conditions=[job_condition("Complete")]), NOW)
    assert found.actions == [Delete(JOBS, "faq-train", "uid-child")]
    assert conditions(found.status)["Running"] == ("False", "ResultLost")


def test_success_without_an_artifact_is_a_failure() -> None:
    done = observed_job(job_object(), pod(terminated=terminated(0)), job_conditions=[job_condition("Complete")])
    found = plan_finetunejob(done, NOW)
    assert found.actions == []
    assert conditions(found.status)["Failed"] == ("True", "ArtifactMissing")


@pytest.mark.parametrize(
    ("state", "reason", "words"),
    [
        (
            terminated(65, failure("DatasetColumnMissing", "no column 'text'")),
            "DatasetColumnMissing",
            "no column 'text'",
        ),
        (terminated(137, None, reason="OOMKilled"), "HostOutOfMemory", "spec.resources.memory"),
        (terminated(70, "not JSON"), "InternalError", "exit code 70"),
        (terminated(137), "InternalError", "was killed"),
    ],
)
def test_a_failure_has_the_trainers_reason(state: dict[str, Any], reason: str, words: str) -> None:
    ended = observed_job(
        job_object(), pod(terminated=state), job_conditions=[job_condition("Failed", "PodFailurePolicy")]
    )
    found = plan_finetunejob(ended, NOW)
    assert found.status["stage"] == "Failed"
    assert conditions(found.status)["Failed"] == ("True", reason)
    assert words in message(found.status, "Failed")
    assert [(event.type, event.reason) for event in found.events] == [("Warning", reason)]


def test_too_many_failures_name_the_limit_and_the_last_failure() -> None:
    pods = [
        pod("p1", terminated=terminated(70, failure("InternalError", "first"))),
        pod("p2", terminated={**terminated(74, failure("DiskFull", "no room")), "finishedAt": "2026-03-01T11:30:00Z"}),
    ]
    ended = observed_job(job_object(), *pods, job_conditions=[job_condition("Failed", "BackoffLimitExceeded")])
    found = plan_finetunejob(ended, NOW)
    assert conditions(found.status)["Failed"] == ("True", "DiskFull")
    assert message(found.status, "Failed") == "no room (BackoffLimitExceeded: 2 trainers failed.)"


def test_a_failed_job_without_pods_has_the_jobs_message() -> None:
    ended = observed_job(
        job_object(), job_conditions=[job_condition("Failed", "BackoffLimitExceeded", "limit reached")]
    )
    assert conditions(plan_finetunejob(ended, NOW).status)["Failed"] == ("True", "BackoffLimitExceeded")


@pytest.mark.parametrize("stage", ["Succeeded", "Failed"])
def test_a_terminal_job_keeps_its_result(stage: str) -> None:
    result = {"type": stage, "status": "True", "reason": "Why", "message": "so", "lastTransitionTime": BEFORE}
    owner = job_object(status={"stage": stage, "metrics": {"loss": 1.0}, "conditions": [result]})
    found = plan_finetunejob(new(owner), NOW)
    assert (found.actions, found.events) == ([], [])
    assert (found.status["stage"], found.status["metrics"]) == (stage, {"loss": 1.0})
    assert found.status["conditions"][0] == result


@pytest.mark.parametrize("stage", ["Succeeded", "Failed"])
def test_the_health_of_a_terminal_job_follows_its_generation_and_then_stays(stage: str) -> None:
    owner = job_object(status={"stage": stage, "observedGeneration": 1, "conditions": []})
    owner["metadata"]["generation"] = 2
    owner["status"] = plan_finetunejob(new(owner), NOW).status
    assert owner["status"]["observedGeneration"] == 2
    assert conditions(owner["status"])["Ready"] == ("True" if stage == "Succeeded" else "False", stage)
    assert plan_finetunejob(new(owner), NOW + timedelta(hours=1)).status == owner["status"]


def test_a_job_deleted_by_hand_is_created_again() -> None:
    observed = observed_job(job_object(status={"stage": "Training"}))
    observed.job = None
    assert [(type(a), a.resource) for a in plan_finetunejob(observed, NOW).actions] == [(Create, JOBS)]


def test_a_job_is_not_made_while_an_earlier_trainer_writes_on_the_claim() -> None:
    observed = observed_job(job_object())
    observed.job = None
    observed.stale_pods = [pod("old", running={"startedAt": BEFORE})]
    found = plan_finetunejob(observed, NOW)
    assert found.actions == []
    assert conditions(found.status)["Running"] == ("False", "EarlierTrainerEnding")
    assert "old" in message(found.status, "Running")


def test_edits_of_the_children_are_reverted() -> None:
    observed = observed_job(job_object())
    assert observed.job
    assert observed.config_map
    observed.job["spec"]["parallelism"] = 0
    observed.config_map["data"] = {"finetunejob.yaml": "{}"}
    patch, applied = plan_finetunejob(observed, NOW).actions
    assert isinstance(patch, Patch)
    assert patch.patch["spec"] == {"parallelism": 1, "backoffLimit": 3, "activeDeadlineSeconds": None}
    assert isinstance(applied, Apply)
    assert "org/base" in applied.body["data"]["finetunejob.yaml"]


def test_a_job_that_something_else_suspends_is_left_suspended() -> None:
    observed = observed_job(job_object(labels={"kueue.x-k8s.io/queue-name": "gpus", "mine": "x"}))
    assert observed.job
    observed.job["spec"]["suspend"] = True
    found = plan_finetunejob(observed, NOW)
    assert found.actions == []
    assert found.status["stage"] == "Suspended"
    assert conditions(found.status)["Suspended"] == ("True", "Queued")
    assert observed.job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
    assert "mine" not in observed.job["metadata"]["labels"]


def test_the_queues_reason_is_shown_for_as_long_as_the_job_waits() -> None:
    observed = observed_job(job_object())
    assert observed.job
    observed.job["spec"]["suspend"] = True
    silent = plan_finetunejob(observed, NOW)
    assert silent.requeue_after_seconds
    observed.owner["status"], observed.queue_message = (
        silent.status,
        "Pending: insufficient unused quota for amd.com/gpu",
    )
    heard = plan_finetunejob(observed, NOW)
    message = next(c["message"] for c in heard.status["conditions"] if c["type"] == "Suspended")
    assert message.endswith(" Pending: insufficient unused quota for amd.com/gpu.")
    observed.owner["status"], observed.queue_message = heard.status, None
    assert plan_finetunejob(observed, NOW).status == heard.status


def test_objects_of_others_are_never_taken_over() -> None:
    observed = observed_job(job_object())
    assert observed.job
    observed.job = foreign(observed.job)
    found = plan_finetunejob(observed, NOW)
    assert found.actions == []
    assert conditions(found.status)["Accepted"] == ("False", "NameConflict")
    assert "faq-train" in message(found.status, "Accepted")


def test_a_job_does_not_run_with_the_manifest_of_another() -> None:
    observed = observed_job(job_object())
    assert observed.config_map
    observed.config_map = foreign(observed.config_map)
    found = plan_finetunejob(observed, NOW)
    assert found.actions == [Delete(JOBS, "faq-train", "uid-child")]
    assert "faq-manifest" in message(found.status, "Accepted")


def test_the_children_of_a_deleted_object_of_the_same_name_are_waited_for() -> None:
    observed = observed_job(job_object())
    assert observed.job
    observed.job = of_predecessor(observed.job)
    found = plan_finetunejob(observed, NOW)
    assert found.actions == []
    assert found.requeue_after_seconds
    assert "Accepted" not in conditions(found.status)


def test_an_object_that_breaks_the_contract_is_refused_with_a_message() -> None:
    error = HoneError(INVALID_SPEC, "spec.model: no")
    found = plan_finetunejob(ObservedFineTuneJob(job_object(), error, IMAGE), NOW)
    assert (found.actions, found.requeue_after_seconds) == ([], None)
    assert conditions(found.status)["Accepted"] == ("False", "InvalidSpec")


def test_a_pod_without_a_node_is_explained_by_the_cluster() -> None:
    waiting = unschedulable("0/3 nodes: Insufficient amd.com/gpu.", **{"amd.com/gpu": "8"})
    facts = ClusterNodes((Node("gpu-1", {"amd.com/gpu": 4}),))
    found = plan_finetunejob(
        observed_job(job_object(status=PREPARED, resources={"gpus": 8}), waiting, cluster=facts), NOW
    )
    assert found.status["stage"] == "Pending"
    assert conditions(found.status)["Running"] == ("False", "Unschedulable")
    assert "0/3 nodes" in message(found.status, "Running")
    assert "spec.resources.gpus to 4" in message(found.status, "Running")


@pytest.mark.parametrize(
    ("waiting", "warning", "reason"),
    [
        (unschedulable("pod has unbound immediate PersistentVolumeClaims"), None, "VolumeNotBound"),
        (pod(waiting={"reason": "ImagePullBackOff", "message": "not found"}), None, "ImagePullFailed"),
        (pod(waiting={"reason": "InvalidImageName", "message": "bad"}), None, "ImagePullFailed"),
        (pod(waiting={"reason": "CreateContainerConfigError", "message": "no secret"}), None, "PodNotStarted"),
        (pod(waiting={"reason": "ContainerCreating"}), "FailedMount: no ConfigMap", "PodNotStarted"),
        (pod(waiting={"reason": "ContainerCreating"}), None, "PodStarting"),
    ],
)
def test_a_pod_that_does_not_start_is_explained(waiting: dict[str, Any], warning: str | None, reason: str) -> None:
    found = plan_finetunejob(observed_job(job_object(), waiting, warning=warning), NOW)
    assert conditions(found.status)["Running"] == ("False", reason)
    assert conditions(found.status)["Failed"] == ("False", "NotFinished")
    assert found.requeue_after_seconds


def test_a_retry_reports_the_last_failure() -> None:
    first = pod("p1", terminated=terminated(71, failure("HubUnreachable", "no route")))
    found = plan_finetunejob(observed_job(job_object(), first, pod("p2", waiting={"reason": "ContainerCreating"})), NOW)
    assert conditions(found.status)["Running"] == ("False", "Retrying")
    assert "no route" in message(found.status, "Running")


def test_a_refusal_of_the_api_server_is_reported() -> None:
    observed = new(job_object())
    observed.sync_failures = [SyncFailure(explain_refusal("exceeded quota"), stops_pods=True)]
    found = plan_finetunejob(observed, NOW)
    assert conditions(found.status)["Running"] == ("False", "PodNotStarted")
    assert "exceeded quota" in message(found.status, "Running")


def test_a_second_pass_changes_nothing() -> None:
    running = pod(running={"startedAt": BEFORE})
    first = plan_finetunejob(observed_job(job_object(), running), NOW)
    later = NOW.replace(hour=13)
    second = plan_finetunejob(observed_job(job_object(status=first.status), running), later)
    assert (second.status, second.events, second.actions) == (first.status, [], [])


def test_last_transition_time_changes_with_the_status_only() -> None:
    first = plan_finetunejob(observed_job(job_object(), unschedulable("one")), NOW).status
    later = NOW.replace(hour=13)
    second = plan_finetunejob(observed_job(job_object(status=first), unschedulable("two")), later).status
    third = plan_finetunejob(observed_job(job_object(status=second), pod(running={"startedAt": BEFORE})), later).status
    times = [
        next(c["lastTransitionTime"] for c in s["conditions"] if c["type"] == "Running") for s in (first, second, third)
    ]
    assert times == ["2026-03-01T12:00:00Z", "2026-03-01T12:00:00Z", "2026-03-01T13:00:00Z"]
    assert message(second, "Running").startswith("two")
