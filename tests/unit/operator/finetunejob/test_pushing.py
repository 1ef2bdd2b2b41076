"""The push of a complete artifact: its Job, its retries, what the status shows, and that it never costs the result."""

import copy
import json
from datetime import timedelta
from typing import Any

import pytest
from hone_operator.finetunejob import children
from hone_operator.finetunejob.plan import plan_finetunejob
from hone_operator.finetunejob.push_job import build_push_job
from hone_operator.finetunejob.snapshot import ObservedFineTuneJob
from hone_operator.objects.resources import CONFIGMAPS, JOBS, awaits_push, has_ended
from hone_operator.objects.timestamps import format_timestamp
from hone_operator.reconcile.plan import Create, Delete, Patch, Plan
from observed import (
    BEFORE,
    DIGEST,
    IMAGE,
    NOW,
    conditions,
    finished_job,
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
BUCKET = {"uri": "s3://models/faq/", "secret": {"name": "writer"}, "endpoint": "http://minio:9000"}
HUB = {"hub": {"repo": "me/faq", "tokenSecret": {"name": "hub", "key": "write"}}}
PUSHES = [BUCKET, HUB]
# The bucket in status.pushes.
PLACE = {"address": "s3://models/faq/", "endpoint": "http://minio:9000"}


def owner_of(*pushes: Object, status: Object | None = None, **spec: Any) -> Object:
    owner = finished_job(output={"push": [*pushes]}, **spec)
    owner["status"] |= {"completionTime": BEFORE} | (status or {})
    return owner


def observe(
    owner: Object, *pods: Object, conditions: list[Object] | None = None, has_job: bool = True, **more: Any
) -> ObservedFineTuneJob:
    """Return a finished FineTuneJob with its pushing Job."""
    job = parsed_job(owner)
    made = stored(build_push_job(owner, job, IMAGE, DIGEST), uid="uid-push", conditions=conditions or [])
    config_map = stored(children.build_config_map(owner))
    return ObservedFineTuneJob(
        owner, job, IMAGE, config_map=config_map, push_job=made if has_job else None, push_pods=list(pods), **more
    )


def pushed(*results: Object) -> Object:
    return {"outcome": "Succeeded", "reason": "Pushed", "message": "done", "pushed": [*results]}


def failed(reason: str, text: str, *results: Object) -> Object:
    return {"outcome": "Failed", "reason": reason, "message": text, "pushed": [*results]}


def plan(observed: ObservedFineTuneJob, now: Any = NOW) -> Plan:
    found = plan_finetunejob(observed, now)
    assert found.status["stage"] == "Succeeded"
    assert conditions(found.status)["Ready"][0] == "True"
    return found


def container(job: Object) -> Object:
    found: Object = job["spec"]["template"]["spec"]["containers"][0]
    return found


def test_only_the_pushing_pod_has_the_credentials_and_no_gpu() -> None:
    owner = job_object(output={"push": PUSHES}, resources={"gpus": 8}, tokenSecret={"name": "reader"})
    made = build_push_job(owner, parsed_job(owner), IMAGE, DIGEST)
    assert made["metadata"]["name"] == "faq-push"
    found = container(made)
    assert found["command"] == ["python3", "-m", "hone_trainer.push.main"]
    assert found["args"][:5] == ["/output", "--manifest", "/etc/hone/finetunejob.yaml", "--digest", DIGEST]
    assert "amd.com/gpu" not in json.dumps(found["resources"])
    for name in ("writer", "hub"):
        assert f"{name}=/secrets/{name}" in found["args"]
    assert "reader" not in json.dumps(made["spec"])
    [output] = [mount for mount in found["volumeMounts"] if mount["mountPath"] == "/output"]
    assert output["readOnly"]
    assert output["subPath"] == "team/faq"
    actions = plan_finetunejob(observed_job(owner), NOW).actions
    assert not [
        action for action in actions if isinstance(action, Create) and "push" in action.body["metadata"]["name"]
    ]


@pytest.mark.parametrize(
    ("memory", "request_", "limit"), [(None, "1Gi", None), ("64Gi", "1Gi", "64Gi"), ("512Mi", "512Mi", "512Mi")]
)
def test_the_limit_of_memory_is_the_trainers(memory: str | None, request_: str, limit: str | None) -> None:
    owner = job_object(output={"push": PUSHES}, resources={"gpus": 8} | ({"memory": memory} if memory else {}))
    found = container(build_push_job(owner, parsed_job(owner), IMAGE, DIGEST))["resources"]
    assert found["requests"] == {"cpu": "200m", "memory": request_}
    assert found["limits"].get("memory") == limit


def test_the_hub_token_of_the_job_is_used_where_a_destination_names_none() -> None:
    owner = job_object(output={"push": [{"hub": {"repo": "me/faq"}}]}, tokenSecret={"name": "reader"})
    made = build_push_job(owner, parsed_job(owner), IMAGE, DIGEST)
    [token] = [variable for variable in container(made)["env"] if variable["name"] == "HF_TOKEN"]
    assert token["valueFrom"]["secretKeyRef"] == {"name": "reader", "key": "token"}


def test_a_success_announces_the_push_and_looks_again_at_once() -> None:
    owner = job_object(output={"push": PUSHES}, resources={"gpus": 0})
    done = pod(terminated=terminated(0, success()))
    found = plan(observed_job(owner, done, job_conditions=[job_condition("Complete")]))
    assert conditions(found.status)["Pushed"] == ("False", "Pushing")
    assert found.requeue_after_seconds == 0
    assert awaits_push({**owner, "status": found.status})


@pytest.mark.parametrize("seconds", [None, 0])
def test_a_job_without_destinations_has_no_push(seconds: int | None) -> None:
    found = plan(observe(owner_of(), has_job=False))
    assert found.actions == []
    assert "Pushed" not in conditions(found.status)
    assert "pushes" not in found.status
    assert has_ended({**owner_of(), "status": found.status})


def test_a_complete_artifact_gets_a_pushing_job() -> None:
    owner = owner_of(*PUSHES)
    found = plan(observe(owner, has_job=False))
    [action] = found.actions
    assert isinstance(action, Create)
    assert action.body == build_push_job(owner, parsed_job(owner), IMAGE, DIGEST)
    assert found.status["pushes"] == [PLACE, {"address": "hf://me/faq"}]


def test_the_manifest_has_the_destinations_before_the_job_is_made() -> None:
    observed = observe(owner_of(*PUSHES), has_job=False)
    observed.config_map = stored(children.build_config_map(owner_of()))
    first = plan(observed)  # actions of one pass are carried out at the same time, and one may fail alone
    assert [action.resource for action in first.actions] == [CONFIGMAPS]
    assert first.requeue_after_seconds
    observed.config_map = None
    assert [action.resource for action in plan(observed).actions] == [CONFIGMAPS]
    observed.config_map = stored(children.build_config_map(observed.owner))
    assert [action.resource for action in plan(observed).actions] == [JOBS]


def test_a_config_map_of_somebody_else_is_left_alone() -> None:
    observed = observe(owner_of(*PUSHES), has_job=False)
    assert observed.config_map
    observed.config_map = foreign(observed.config_map)
    found = plan(observed)
    assert found.actions == []
    assert conditions(found.status)["Pushed"] == ("False", "NameConflict")


def test_a_running_push_is_reported() -> None:
    found = plan(observe(owner_of(*PUSHES), pod("faq-push-x", container="push", running={"startedAt": BEFORE})))
    assert found.actions == []
    assert conditions(found.status)["Pushed"] == ("False", "Pushing")
    assert message(found.status, "Pushed") == "Pod faq-push-x pushes the artifact."
    assert found.events == []


def test_a_finished_push_shows_each_address_with_digest_and_revision() -> None:
    done = pod(container="push", terminated=terminated(0, pushed({"index": 0}, {"index": 1, "revision": "abc"})))
    found = plan(observe(owner_of(*PUSHES), done, conditions=[job_condition("Complete")]))
    assert found.actions == []
    assert found.status["pushes"] == [
        PLACE | {"digest": DIGEST},
        {"address": "hf://me/faq", "digest": DIGEST, "revision": "abc"},
    ]
    assert conditions(found.status)["Pushed"] == ("True", "Pushed")
    assert message(found.status, "Pushed") == f"The artifact {DIGEST} is complete at s3://models/faq/, hf://me/faq."
    assert [event.reason for event in found.events] == ["Pushed"]
    again = plan(observe(owner_of(*PUSHES, status=found.status), has_job=False))
    assert (again.actions, again.events, again.status) == ([], [], found.status)
    assert has_ended(owner_of(*PUSHES, status=found.status))


def test_a_complete_job_whose_pod_is_gone_has_pushed() -> None:
    found = plan(observe(owner_of(*PUSHES), conditions=[job_condition("Complete")]))
    assert conditions(found.status)["Pushed"] == ("True", "Pushed")


def fail(seconds_ago: float) -> list[Object]:
    found = job_condition("Failed", "PodFailurePolicy", "x")
    return [found | {"lastTransitionTime": format_timestamp(NOW - timedelta(seconds=seconds_ago))}]


REFUSED = failed(
    "StoreUnauthorized",
    "spec.output.push[0].uri is s3://models/faq/, and the server refused access.",
    {"index": 0, "reason": "StoreUnauthorized", "message": "refused"},
    {"index": 1, "revision": "abc"},
)


def test_a_failed_push_is_reported_and_the_job_is_still_succeeded() -> None:
    ended = pod(container="push", terminated=terminated(67, REFUSED))
    found = plan(observe(owner_of(*PUSHES), ended, conditions=fail(10)))
    assert found.actions == []
    assert conditions(found.status)["Pushed"] == ("False", "StoreUnauthorized")
    text = message(found.status, "Pushed")
    assert "the server refused access. The push is repeated at 2026-03-01T12:" in text
    assert "kubectl delete job faq-push --namespace team" in text
    assert found.status["pushes"] == [
        PLACE | {"reason": "StoreUnauthorized", "message": "refused"},
        {"address": "hf://me/faq", "digest": DIGEST, "revision": "abc"},
    ]
    assert [(event.type, event.reason) for event in found.events] == [("Warning", "StoreUnauthorized")]


@pytest.mark.parametrize(("hours", "pause"), [(0.1, 300), (2, 1800), (1000, 6 * 3600)])
def test_a_failed_push_is_repeated_after_a_pause_that_grows(hours: float, pause: float) -> None:
    ended = pod(container="push", terminated=terminated(67, REFUSED))
    since = format_timestamp(NOW - timedelta(seconds=pause - 1, hours=hours))
    waits = plan(observe(owner_of(*PUSHES, status={"completionTime": since}), ended, conditions=fail(pause - 1)))
    assert waits.actions == []
    assert waits.requeue_after_seconds == 1
    since = format_timestamp(NOW - timedelta(seconds=pause, hours=hours))
    due = plan(observe(owner_of(*PUSHES, status={"completionTime": since}), ended, conditions=fail(pause)))
    assert [type(action) for action in due.actions] == [Delete]


def test_what_an_earlier_attempt_has_pushed_counts() -> None:
    first = pod("p1", container="push", terminated=terminated(71, REFUSED))
    found = plan(observe(owner_of(*PUSHES), first, pod("p2", container="push", running={"startedAt": BEFORE})))
    assert found.status["pushes"][1]["digest"] == DIGEST
    assert "Previous failure: spec.output.push[0].uri" in message(found.status, "Pushed")


def test_a_push_that_was_stopped_before_any_result_keeps_its_reason() -> None:
    ended = pod(container="push", terminated=terminated(65, failed("ArtifactCorrupt", "a file differs")))
    found = plan(observe(owner_of(*PUSHES), ended, conditions=fail(1)))
    assert conditions(found.status)["Pushed"] == ("False", "ArtifactCorrupt")


def test_a_missing_secret_is_explained() -> None:
    waiting = pod(container="push", waiting={"reason": "ContainerCreating"})
    warning = 'MountVolume.SetUp failed for volume "secret-0" : secret "writer" not found'
    found = plan(observe(owner_of(*PUSHES), waiting, warning=warning))
    assert conditions(found.status)["Pushed"][0] == "False"
    assert 'secret "writer" not found' in message(found.status, "Pushed")
    assert found.requeue_after_seconds


def test_changed_destinations_replace_the_job() -> None:
    observed = observe(owner_of(*PUSHES), pod(container="push", running={"startedAt": BEFORE}))
    changed = owner_of(HUB)
    observed.owner, observed.spec = changed, parsed_job(changed)
    [action] = plan(observed).actions
    assert isinstance(action, Delete)
    assert action.name == "faq-push"


def test_a_job_that_pushed_elsewhere_says_nothing_about_an_added_destination() -> None:
    first, second = {"uri": "s3://models/faq/"}, {"uri": "s3://models/copy/"}
    done = pod(container="push", terminated=terminated(0, pushed({"index": 0})))
    observed = observe(owner_of(first), done, conditions=[job_condition("Complete")])
    changed = owner_of(first, second, status=plan(observed).status)
    observed.owner, observed.spec = changed, parsed_job(changed)
    observed.owner = owner_of(first, second, status=plan(observed).status)
    found = plan(observed)
    assert [type(action) for action in found.actions] == [Delete]
    assert found.status["pushes"] == [
        {"address": "s3://models/faq/", "digest": DIGEST},
        {"address": "s3://models/copy/"},
    ]


def test_destinations_that_are_added_after_a_push_are_pushed_to() -> None:
    done = pod(container="push", terminated=terminated(0, pushed({"index": 0})))
    before = plan(observe(owner_of(BUCKET), done, conditions=[job_condition("Complete")])).status
    noticed = observe(owner_of(BUCKET, HUB, status=before), has_job=False)
    noticed.config_map = None  # it was not read, since all was pushed; the existing one lacks the destination
    first = plan(noticed)
    assert (first.actions, first.requeue_after_seconds) == ([], 0)
    assert first.status["pushes"] == [PLACE | {"digest": DIGEST}, {"address": "hf://me/faq"}]
    assert conditions(first.status)["Pushed"] == ("False", "Pushing")
    found = plan(observe(owner_of(BUCKET, HUB, status=first.status), has_job=False))
    assert [type(action) for action in found.actions] == [Create]


def test_another_server_with_the_same_address_is_pushed_to() -> None:
    done = pod(container="push", terminated=terminated(0, pushed({"index": 0})))
    before = plan(observe(owner_of(BUCKET), done, conditions=[job_condition("Complete")])).status
    moved = BUCKET | {"endpoint": "http://other:9000"}
    found = plan(observe(owner_of(moved, status=before), has_job=False))
    assert found.status["pushes"] == [{"address": "s3://models/faq/", "endpoint": "http://other:9000"}]
    assert conditions(found.status)["Pushed"] == ("False", "Pushing")


def test_removed_destinations_end_the_push() -> None:
    observed = observe(owner_of(*PUSHES), conditions=fail(1))
    observed.owner = owner_of(status={"pushes": [{"address": "s3://models/faq/"}]})
    observed.spec = parsed_job(observed.owner)
    found = plan(observed)
    assert [type(action) for action in found.actions] == [Delete]
    assert "pushes" not in found.status
    assert "Pushed" not in conditions(found.status)


def test_a_job_of_somebody_else_is_left_alone() -> None:
    observed = observe(owner_of(*PUSHES))
    assert observed.push_job
    observed.push_job = foreign(observed.push_job)
    found = plan(observed)
    assert found.actions == []
    assert conditions(found.status)["Pushed"] == ("False", "NameConflict")


def test_a_job_that_is_being_deleted_is_waited_for() -> None:
    observed = observe(owner_of(*PUSHES))
    assert observed.push_job
    observed.push_job["metadata"]["deletionTimestamp"] = BEFORE
    found = plan(observed)
    assert (found.actions, found.requeue_after_seconds) == ([], 2)


def test_a_job_whose_pod_is_about_to_end_stays_with_its_log() -> None:
    """The container's end is in the pod's status before the pod's own."""
    ending = pod(container="push", terminated=terminated(0, pushed({"index": 0}, {"index": 1})))
    ending["status"]["phase"] = "Running"
    found = plan(observe(owner_of(*PUSHES), ending))
    assert conditions(found.status)["Pushed"][0] == "True"
    assert not found.actions


@pytest.mark.parametrize(("state", "action"), [(terminated(0, pushed()), Delete), (terminated(67, REFUSED), Patch)])
def test_other_containers_do_not_keep_the_pod(state: Object, action: type) -> None:
    held = pod(container="push", terminated=state)
    held["status"]["phase"] = "Running"
    held["status"]["containerStatuses"].append({"name": "istio-proxy", "restartCount": 0, "state": {"running": {}}})
    found = plan(observe(owner_of(*PUSHES), held))
    assert [type(one) for one in found.actions] == [action]
    assert (conditions(found.status)["Pushed"][0] == "True") == (action is Delete)


def test_a_pending_push_outlives_the_ttl_and_a_finished_one_does_not() -> None:
    observed = observe(owner_of(*PUSHES, ttlSecondsAfterFinished=0), conditions=fail(1))
    assert [action.resource for action in plan(observed).actions] == []
    done = observe(owner_of(*PUSHES, ttlSecondsAfterFinished=0), conditions=[job_condition("Complete")])
    assert [type(action) for action in plan(done).actions] == [Delete]


def test_a_failed_job_is_not_pushed() -> None:
    owner = owner_of(*PUSHES, status={"stage": "Failed"})
    del owner["status"]["artifact"]
    found = plan_finetunejob(observe(owner, has_job=False), NOW)
    assert found.actions == []
    assert has_ended(owner)


def test_the_result_of_another_artifact_does_not_count() -> None:
    other = [PLACE | {"digest": "sha256:" + "b" * 64}]
    found = plan(observe(owner_of(BUCKET, status={"pushes": other}), has_job=False))
    assert found.status["pushes"] == [PLACE]
    assert [type(action) for action in found.actions] == [Create]


def test_the_plan_does_not_change_the_snapshot() -> None:
    observed = observe(owner_of(*PUSHES), pod(container="push", terminated=terminated(67, REFUSED)), conditions=fail(1))
    before = copy.deepcopy(observed.owner)
    plan(observed)
    assert observed.owner == before
