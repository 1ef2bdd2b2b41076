"""The life of a FineTuneJob: preparing, suspension, deadline, several nodes, and the time after its end."""

from datetime import timedelta
from typing import Any

import pytest
from hone_api.artifacts.trainer_reports import ProgressReport
from hone_operator.finetunejob import children, jobs
from hone_operator.finetunejob.plan import plan_finetunejob
from hone_operator.finetunejob.snapshot import ObservedFineTuneJob
from hone_operator.kube.client import ApiError
from hone_operator.objects.resources import CONFIGMAPS, JOBS, SERVICES
from hone_operator.objects.timestamps import format_timestamp
from hone_operator.reconcile.plan import Apply, Create, Delete, Patch
from hone_operator.reconcile.sync_failures import explain_write_failure
from observed import (
    BEFORE,
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
    parsed_job,
    pod,
    stored,
    success,
    terminated,
)

Object = dict[str, Any]
GPU = {"gpus": 1}
RUNNING = {"startedAt": BEFORE}
TWO = {"resources": {"gpus": 4, "nodes": 2}, "output": {"claim": {"name": "shared"}}}
ESTIMATE = {
    "processes": 1,
    "batch": 1,
    "length": 8,
    "peak": "loss",
    **dict.fromkeys(("weights", "gradients", "optimizerStates", "activations", "logits", "communication"), 1),
    "allowance": 1,
    "total": 7,
}


def preparing(*pods: Object, job_conditions: list[Object] | None = None, **more: Any) -> ObservedFineTuneJob:
    """Return a job with GPUs that has only its preparing Job."""
    owner = job_object(resources=GPU, tokenSecret={"name": "hf"}, **more)
    observed = observed_job(owner)
    observed.job = None
    made = jobs.build_prepare_job(owner, parsed_job(owner), IMAGE, None)
    observed.prepare_job = stored(made, "uid-prepare", conditions=job_conditions or [])
    observed.prepare_pods = list(pods)
    return observed


def jobs_made(observed: ObservedFineTuneJob) -> list[str]:
    return [a.body["metadata"]["name"] for a in plan_finetunejob(observed, NOW).actions if isinstance(a, Create)]


def container_of(job: Object) -> Object:
    found: Object = job["spec"]["template"]["spec"]["containers"][0]
    return found


def indexed(name: str, index: int, **state: Any) -> Object:
    found = pod(name, **state)
    found["metadata"]["labels"] = {"batch.kubernetes.io/job-completion-index": str(index)}
    return found


# --- preparing ---


def test_with_gpus_a_job_without_them_prepares_first() -> None:
    owner = job_object(resources=GPU, tokenSecret={"name": "hf"})
    observed = observed_job(owner, gpu=("MI300X of node n1", 1234))
    observed.job = None
    [made] = [a.body for a in plan_finetunejob(observed, NOW).actions if isinstance(a, Create) and a.resource is JOBS]
    assert made["metadata"]["name"] == "faq-prepare"
    container = container_of(made)
    assert "amd.com/gpu" not in str(container["resources"])
    assert container["command"][:2] == ["hone-trainer", "prepare"]
    assert container["args"][:4] == ["--gpu-name", "MI300X of node n1", "--gpu-memory", "1234"]
    assert "HF_TOKEN" in [variable["name"] for variable in container["env"]]
    assert {"key": "amd.com/gpu", "operator": "Exists"} in made["spec"]["template"]["spec"]["tolerations"]


def test_without_gpus_the_trainer_prepares_and_has_the_token() -> None:
    owner = job_object(tokenSecret={"name": "hf"})
    made = jobs.build_train_job(owner, parsed_job(owner), IMAGE)
    assert "HF_TOKEN" in [variable["name"] for variable in container_of(made)["env"]]
    assert jobs_made(ObservedFineTuneJob(owner, parsed_job(owner), IMAGE))[0] == "faq-train"


def test_the_training_job_has_no_token_and_no_hub() -> None:
    owner = job_object(resources=GPU, tokenSecret={"name": "hf"}, pod={"env": [{"name": "HF_TOKEN", "value": "x"}]})
    container = container_of(jobs.build_train_job(owner, parsed_job(owner), IMAGE))
    env = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert "HF_TOKEN" not in env
    assert env["HF_HUB_OFFLINE"] == "1"
    assert container["resources"]["limits"]["amd.com/gpu"] == "1"


def test_preparing_is_shown_and_requests_no_gpu() -> None:
    found = plan_finetunejob(preparing(pod(container="prepare", running=RUNNING)), NOW)
    assert found.actions == []
    assert found.status["stage"] == "Preparing"
    assert conditions(found.status)["Prepared"] == ("False", "Preparing")
    assert conditions(found.status)["Running"] == ("False", "Preparing")


DOWNLOAD = "downloaded 3 GiB of 12 GiB, 210 MiB/s, 43 s left"


@pytest.mark.parametrize("on_host", [False, True])
def test_how_far_a_download_is_can_be_read_while_preparing(on_host: bool) -> None:
    ready = pod(container="prepare", running=RUNNING)
    ready["status"]["podIP"] = "10.0.0.7"
    observed = preparing(ready, pod={"hostNetwork": on_host})
    observed.pod_level = "privileged"
    assert observed.prepare_job
    arguments = container_of(observed.prepare_job)["args"]
    observed.reports = {"uid-p1": ProgressReport(stage="Preparing", activity=DOWNLOAD)}
    found = plan_finetunejob(observed, NOW)
    if on_host:  # another program of the node may have the port
        assert "--port" not in arguments
        assert found.poll_urls == {}
        assert DOWNLOAD not in message(found.status, "Prepared")
    else:
        assert arguments[arguments.index("--port") + 1] == "8080"
        assert found.poll_urls == {"uid-p1": "http://10.0.0.7:8080/progress"}
        assert message(found.status, "Prepared") == f"Pod p1 prepares: {DOWNLOAD}. No GPU is held."
    assert conditions(found.status)["Running"] == ("False", "Preparing")


def test_how_far_the_download_of_a_trainer_without_gpus_is_can_be_read() -> None:
    running = pod(running=RUNNING)
    reports = {"uid-p1": ProgressReport(stage="Preparing", activity=DOWNLOAD)}
    observed = observed_job(job_object(), running, trainer_pods=[running], reports=reports)
    found = plan_finetunejob(observed, NOW)
    assert message(found.status, "Running") == f"The trainer runs in pod p1: {DOWNLOAD}."


def test_after_preparing_the_training_job_is_created_and_the_estimate_kept() -> None:
    word = {"outcome": "Succeeded", "reason": "Prepared", "message": "82 rows", "estimate": ESTIMATE}
    ended = pod(container="prepare", terminated=terminated(0, word))
    observed = preparing(ended, job_conditions=[job_condition("Complete")])
    found = plan_finetunejob(observed, NOW)
    assert [a.body["metadata"]["name"] for a in found.actions if isinstance(a, Create)] == ["faq-train"]
    assert conditions(found.status)["Prepared"] == ("True", "Prepared")
    assert message(found.status, "Prepared") == "82 rows"
    assert found.status["estimate"]["total"] == 7


def test_a_preparation_whose_pod_is_gone_counts_all_the_same() -> None:
    assert jobs_made(preparing(job_conditions=[job_condition("Complete")])) == ["faq-train"]


def test_a_finished_preparation_counts_without_its_job() -> None:
    observed = observed_job(job_object(resources=GPU, status=PREPARED))
    observed.job = None
    assert jobs_made(observed) == ["faq-train"]


def test_no_job_is_created_while_the_config_map_has_the_manifest_of_another_spec() -> None:
    observed = observed_job(job_object())
    observed.job = None
    assert observed.config_map
    observed.config_map["data"] = {"finetunejob.yaml": "{}"}
    found = plan_finetunejob(observed, NOW)
    assert [(type(each), each.resource) for each in found.actions] == [(Apply, CONFIGMAPS)]
    assert found.requeue_after_seconds is not None


def test_a_mistake_found_in_preparing_ends_the_job() -> None:
    ended = pod(container="prepare", terminated=terminated(69, failure("ModelTooLarge", "needs 99 GiB, MI210 has 64")))
    found = plan_finetunejob(preparing(ended, job_conditions=[job_condition("Failed", "PodFailurePolicy")]), NOW)
    assert found.actions == []
    assert found.status["stage"] == "Failed"
    assert conditions(found.status)["Failed"] == ("True", "ModelTooLarge")
    assert conditions(found.status)["Prepared"] == ("False", "ModelTooLarge")
    assert [event.reason for event in found.events] == ["ModelTooLarge"]


def test_a_waiting_preparing_pod_is_explained() -> None:
    waiting = pod(container="prepare", waiting={"reason": "ImagePullBackOff", "message": "not found"})
    found = plan_finetunejob(preparing(waiting), NOW)
    assert found.status["stage"] == "Pending"
    assert conditions(found.status)["Prepared"] == ("False", "ImagePullFailed")
    assert [event.reason for event in found.events] == ["ImagePullFailed"]


# --- suspended ---


def test_suspending_removes_the_job_and_waits_for_its_pod() -> None:
    found = plan_finetunejob(observed_job(job_object(suspend=True), pod(running=RUNNING)), NOW)
    assert found.actions == [Delete(JOBS, "faq-train", "uid-child")]
    observed = observed_job(job_object(suspend=True, status={"stage": "Training"}))
    observed.job = None
    observed.stale_pods = [pod(running=RUNNING)]
    found = plan_finetunejob(observed, NOW)
    assert found.actions == []
    assert conditions(found.status)["Suspended"] == ("False", "Suspending")
    assert found.status["stage"] == "Training"


def test_a_suspended_job_holds_no_gpu_and_names_the_step_where_it_resumes() -> None:
    observed = observed_job(job_object(suspend=True, status={"progress": {"step": 7, "totalSteps": 9}}))
    observed.job = None
    found = plan_finetunejob(observed, NOW)
    assert found.actions == []
    assert found.status["stage"] == "Suspended"
    assert conditions(found.status)["Suspended"] == ("True", "Suspended")
    assert "step 7" in message(found.status, "Suspended")
    assert [event.reason for event in found.events] == ["Suspended"]


def test_resuming_makes_the_job_again() -> None:
    suspended = observed_job(job_object(suspend=True))
    suspended.job = None
    status = plan_finetunejob(suspended, NOW).status
    observed = observed_job(job_object(status=status))
    observed.job = None
    found = plan_finetunejob(observed, NOW)
    assert [type(action) for action in found.actions] == [Create]
    assert conditions(found.status)["Suspended"] == ("False", "Resumed")
    assert found.status["stage"] == "Pending"


def test_a_job_that_had_succeeded_is_not_suspended() -> None:
    ended = pod(terminated=terminated(0, success()))
    found = plan_finetunejob(
        observed_job(job_object(suspend=True), ended, job_conditions=[job_condition("Complete")]), NOW
    )
    assert (found.status["stage"], found.actions) == ("Succeeded", [])


def test_a_queue_that_takes_the_gpus_away_is_waited_for() -> None:
    observed = observed_job(job_object(), pod(running=RUNNING))
    assert observed.job
    observed.job["spec"]["suspend"] = True
    assert conditions(plan_finetunejob(observed, NOW).status)["Suspended"] == ("False", "Suspending")
    observed.pods = []
    found = plan_finetunejob(observed, NOW)
    assert found.actions == []
    assert (found.status["stage"], conditions(found.status)["Suspended"]) == ("Suspended", ("True", "Queued"))


def test_labels_for_the_queue_reach_only_the_training_job() -> None:
    owner = job_object(labels={"kueue.x-k8s.io/queue-name": "gpus", "other": "x"}, resources=GPU)
    owner["metadata"]["annotations"] = {"kueue.x-k8s.io/some": "1", "kubectl.kubernetes.io/last": "2"}
    training = jobs.build_train_job(owner, parsed_job(owner), IMAGE)["metadata"]
    assert training["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
    assert training["annotations"]["kueue.x-k8s.io/some"] == "1"
    assert not {"other", "kubectl.kubernetes.io/last"} & (training["labels"].keys() | training["annotations"].keys())
    preparing = jobs.build_prepare_job(owner, parsed_job(owner), IMAGE, None)["metadata"]
    assert "kueue.x-k8s.io/queue-name" not in preparing["labels"]


# --- changes, the deadline, and the time after the end ---


def test_an_allowed_change_replaces_the_job() -> None:
    observed = observed_job(job_object())
    observed.owner["spec"]["resources"] = {"gpus": 0, "memory": "8Gi"}
    observed.spec = parsed_job(observed.owner)
    assert Delete(JOBS, "faq-train", "uid-child") in plan_finetunejob(observed, NOW).actions


def test_a_job_of_an_earlier_version_is_left_running() -> None:
    observed = observed_job(job_object(), pod(running=RUNNING))
    assert observed.job
    del observed.job["metadata"]["annotations"]
    assert plan_finetunejob(observed, NOW).actions == []


@pytest.mark.parametrize(("before", "after"), [(None, 60), (60, None), (60, 90)])
def test_the_deadline_can_be_changed(before: int | None, after: int | None) -> None:
    def spec(seconds: int | None) -> Object:
        return {"activeDeadlineSeconds": seconds} if seconds else {}

    observed = observed_job(job_object(**spec(before)))
    observed.owner = job_object(**spec(after))
    observed.spec = parsed_job(observed.owner)
    [patch] = [action for action in plan_finetunejob(observed, NOW).actions if isinstance(action, Patch)]
    assert patch.patch["spec"]["activeDeadlineSeconds"] == after


@pytest.mark.parametrize(
    ("deadline", "said"), [({"activeDeadlineSeconds": 60}, "60 s"), ({}, "a deadline that has been removed since")]
)
def test_an_exceeded_deadline_is_not_reported_as_interrupted(deadline: Object, said: str) -> None:
    ended = pod(terminated=terminated(75, failure("Interrupted", "stopped at step 3")))
    observed = observed_job(job_object(**deadline), ended, job_conditions=[job_condition("Failed", "DeadlineExceeded")])
    found = plan_finetunejob(observed, NOW)
    assert conditions(found.status)["Failed"] == ("True", "DeadlineExceeded")
    assert f"longer than {said}" in message(found.status, "Failed")


@pytest.mark.parametrize(("age", "removed"), [(30, False), (90, True)])
def test_the_jobs_of_a_finished_object_are_removed_after_the_ttl(age: int, removed: bool) -> None:
    ended = {"stage": "Succeeded", "completionTime": format_timestamp(NOW - timedelta(seconds=age))}
    observed = observed_job(job_object(ttlSecondsAfterFinished=60, status=ended))
    found = plan_finetunejob(observed, NOW)
    assert found.status.items() >= ended.items()
    assert found.actions == ([Delete(JOBS, "faq-train", "uid-child")] if removed else [])
    assert found.requeue_after_seconds == (None if removed else 30)


@pytest.mark.parametrize(("kind", "end"), [("Complete", terminated(0, success())), ("Failed", terminated(1))])
def test_a_finished_object_is_checked_again_after_the_ttl(kind: str, end: Object) -> None:
    condition = job_condition(kind) | {"lastTransitionTime": format_timestamp(NOW - timedelta(seconds=10))}
    for seconds, wait in ((60, 50), (0, 0), (None, None)):
        owner = job_object(**({} if seconds is None else {"ttlSecondsAfterFinished": seconds}))
        found = plan_finetunejob(observed_job(owner, pod(terminated=end), job_conditions=[condition]), NOW)
        assert found.status["stage"] in ("Succeeded", "Failed")
        assert found.requeue_after_seconds == wait


def test_a_refused_removal_after_the_end_is_reported_until_it_is_done() -> None:
    ended = {"stage": "Failed", "completionTime": BEFORE}
    observed = observed_job(job_object(ttlSecondsAfterFinished=0, status=ended))
    [action] = plan_finetunejob(observed, NOW).actions
    trouble = explain_write_failure(action, ApiError(403, "jobs are kept for audit"), 1)
    assert trouble
    observed.sync_failures = [trouble]
    found = plan_finetunejob(observed, NOW)
    assert found.actions == [action]
    assert conditions(found.status)["Synced"] == ("False", "ChildRefused")
    assert "The removal of Job faq-train is refused (403): jobs are kept" in message(found.status, "Synced")
    assert [event.reason for event in found.events] == ["ChildRefused"]
    observed.owner = job_object(ttlSecondsAfterFinished=0, status=found.status)
    assert plan_finetunejob(observed, NOW).events == []
    observed.sync_failures, observed.job = [], None
    assert conditions(plan_finetunejob(observed, NOW).status)["Synced"] == ("True", "Synced")


def test_jobs_of_others_are_not_removed() -> None:
    ended = {"stage": "Succeeded", "completionTime": BEFORE}
    observed = observed_job(job_object(ttlSecondsAfterFinished=0, status=ended))
    assert observed.job
    observed.job = foreign(observed.job)
    assert plan_finetunejob(observed, NOW).actions == []


# --- several nodes ---


def test_several_nodes_get_an_indexed_job_with_a_headless_service() -> None:
    owner = job_object(status=PREPARED, **TWO)
    observed = observed_job(owner)
    observed.job = None
    actions = plan_finetunejob(observed, NOW).actions
    [service] = [action.body for action in actions if isinstance(action, Apply) and action.resource is SERVICES]
    assert service["spec"]["clusterIP"] == "None"
    [job] = [action.body for action in actions if isinstance(action, Create)]
    assert (job["spec"]["completionMode"], job["spec"]["completions"], job["spec"]["parallelism"]) == ("Indexed", 2, 2)
    template = job["spec"]["template"]
    assert template["spec"]["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"].items() <= template["metadata"]["labels"].items()
    container = container_of(job)
    env = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert env["MASTER_ADDR"] == "faq-train-0.faq-train"
    assert container["args"][-4:-2] == ["--nnodes", "2"]


def test_the_report_of_the_first_pod_counts_once_all_pods_run() -> None:
    owner = job_object(status=PREPARED, **TWO)
    first, second = indexed("a", 0, running=RUNNING), indexed("b", 1, running=RUNNING)
    found = plan_finetunejob(observed_job(owner, first, second), NOW)
    assert list(found.poll_urls) == ["uid-a"]
    assert conditions(found.status)["Running"] == ("True", "TrainerRunning")
    late = indexed("b", 1, waiting={"reason": "ImagePullBackOff", "message": "not found"})
    assert conditions(plan_finetunejob(observed_job(owner, first, late), NOW).status)["Running"] == (
        "False",
        "ImagePullFailed",
    )


def test_the_first_cause_is_reported_and_not_its_consequences() -> None:
    owner = job_object(status=PREPARED, **TWO)
    cause = indexed("b", 1, terminated=terminated(68, failure("NonFiniteLoss", "step 3")))
    followed = indexed("a", 0, terminated=terminated(75, failure("Interrupted", "lost a peer")))
    ended = observed_job(owner, cause, followed, job_conditions=[job_condition("Failed", "PodFailurePolicy")])
    assert conditions(plan_finetunejob(ended, NOW).status)["Failed"] == ("True", "NonFiniteLoss")


def test_names_that_others_have_are_refused() -> None:
    observed = observed_job(job_object(status=PREPARED, **TWO))
    assert isinstance(observed.spec, type(parsed_job(job_object())))
    observed.service = foreign(stored(children.build_service(observed.owner, observed.spec)))
    found = plan_finetunejob(observed, NOW)
    assert conditions(found.status)["Accepted"] == ("False", "NameConflict")
    assert CONFIGMAPS not in [getattr(action, "resource", None) for action in found.actions]
