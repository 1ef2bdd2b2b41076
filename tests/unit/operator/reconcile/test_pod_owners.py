"""Labels can be copied, so the controller of a pod decides who owns it."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any, cast

import pytest
from held_pods import held
from hone_operator.finetunejob import plan as finetunejob_plan
from hone_operator.kube.cache import Cache
from hone_operator.kube.client import Api
from hone_operator.kube.pod_poller import Poller
from hone_operator.objects.resources import FINETUNEJOBS, JOBS, PODS, Key, Resource
from hone_operator.reconcile.pod_owners import is_stale_pod, select_engines, select_trainers
from hone_operator.snapshots.reader import SnapshotReader
from observed import BEFORE, IMAGES, NOW, conditions, job_object, observed_job, pod, success, terminated

Object = dict[str, Any]
COMPONENT = {"app.kubernetes.io/component": "trainer", "hone.dev/finetunejob": "faq"}
JOB_NAME = {"batch.kubernetes.io/job-name": "faq-train"}


def made_by(kind: str | None, name: str = "", **labels: str) -> Object:
    one = pod(running={"startedAt": BEFORE})
    references = [{"kind": kind, "name": name, "uid": "uid-child", "controller": True}] if kind else []
    one["metadata"] |= {"labels": COMPONENT | labels, "ownerReferences": references}
    return one


@pytest.mark.parametrize(
    ("one", "counts"),
    [
        (made_by("Job", "faq-train"), True),
        (made_by(None, **JOB_NAME), True),
        (made_by(None), False),
        (made_by("Job", "mine", **JOB_NAME), False),
        (made_by("ReplicaSet", "faq-train", **JOB_NAME), False),
    ],
)
def test_a_pod_of_a_users_own_with_copied_labels_is_no_trainer(one: Object, counts: bool) -> None:
    assert (select_trainers("faq-train", [one], "") == [one]) is counts
    assert is_stale_pod(one, ("faq-train",)) is counts
    assert select_trainers("faq-train", [one], "2026-03-01T11:00:01Z") == []


@pytest.mark.parametrize(("name", "counts"), [("chat-5d9c", True), ("chat-two-5d9c", False), ("chat", False)])
def test_a_pod_of_another_deployment_is_no_engine(name: str, counts: bool) -> None:
    metadata = {"name": "chat", "namespace": "team", "uid": "uid-d", "creationTimestamp": BEFORE}
    one = made_by("ReplicaSet", name)
    assert (select_engines({"metadata": metadata}, {"metadata": {"uid": "u"}}, [one]) == [one]) is counts


class Server:
    """An API server with exactly these objects."""

    def __init__(self, *found: Object) -> None:
        self.found = {one["metadata"]["name"]: one for one in found}

    async def get(self, resource: Resource, namespace: str, name: str) -> Object | None:
        return self.found.get(name)

    async def iterate_items(self, resource: Resource, namespace: str, **selectors: str) -> AsyncIterator[Object]:
        for one in self.found.values():
            if resource == PODS and one["kind"] == PODS.kind:
                yield one


class Silent:
    """A poller that polls no pod."""

    def get_last_answer_times(self, key: Key) -> Object:
        return {}

    get_answers = get_last_answer_times


def observer_of(cache: Cache, *found: Object) -> SnapshotReader:
    return SnapshotReader(cast(Api, Server(*found)), cache, cast(Poller, Silent()), IMAGES)


def versioned(body: Object, version: int, **more: Any) -> Object:
    return {**body, "metadata": {**body["metadata"], "resourceVersion": str(version)}, **more}


def succeeded(*, is_held: bool) -> Object:
    """Return a pod of the Job faq-train that has succeeded."""
    state = terminated(0, success())
    one = held(state) if is_held else pod(terminated=state)
    references = made_by("Job", "faq-train")["metadata"]["ownerReferences"]
    one["metadata"] |= {"labels": COMPONENT, "ownerReferences": references}
    return versioned(one, 5, kind="Pod", apiVersion="v1")


def test_a_status_that_was_removed_from_a_finished_job_is_found_again() -> None:
    owner = versioned(job_object(), 3)
    job = versioned(cast(Object, observed_job(owner).job), 4)
    job["status"] = {"conditions": [{"type": "Complete", "status": "True", "lastTransitionTime": BEFORE}]}
    one = succeeded(is_held=False)
    cache, key = Cache(), Key(FINETUNEJOBS, "team", "faq")
    for resource, body in ((FINETUNEJOBS, {**owner, "status": {"stage": "Succeeded"}}), (JOBS, job), (PODS, one)):
        cache.put(resource, body)
    assert "spec" not in cast(Object, cache.get(JOBS, "team", "faq-train"))
    owner = versioned(owner, 6)
    cache.put(FINETUNEJOBS, owner)
    observed = asyncio.run(
        observer_of(cache, job, one, cast(Object, observed_job(owner).claim)).read_finetunejob(key, owner, NOW)
    )
    assert observed.training.find_condition("Complete")
    assert observed.training.success_state


def test_the_operators_own_clock_shows_since_when_a_pod_is_held() -> None:
    owner = versioned(job_object(), 3)
    cache, key = Cache(), Key(FINETUNEJOBS, "team", "faq")
    job, one = versioned(cast(Object, observed_job(owner).job), 4), succeeded(is_held=True)
    for resource, body in ((FINETUNEJOBS, owner), (JOBS, job), (PODS, one)):
        cache.put(resource, body)
    observer = observer_of(cache, cast(Object, observed_job(owner).claim))

    def observe(after: int) -> dict[str, Any]:
        return asyncio.run(observer.read_finetunejob(key, owner, NOW + timedelta(seconds=after))).held_since

    assert observe(0) == observe(20) == {"uid-p1": NOW}
    observer.forget(key)
    assert observe(40) == {"uid-p1": NOW + timedelta(seconds=40)}
    cache.remove(PODS, one)
    assert observe(50) == {}


def test_the_pods_of_an_object_that_is_not_valid_are_observed() -> None:
    owner = versioned(job_object(), 3)
    cache, key = Cache(), Key(FINETUNEJOBS, "team", "faq")
    job = versioned(cast(Object, observed_job(owner).job), 4)
    one = versioned(made_by("Job", "faq-train"), 5, kind="Pod", apiVersion="v1")
    owner["spec"]["model"] = 7
    for resource, body in ((FINETUNEJOBS, owner), (JOBS, job), (PODS, one)):
        cache.put(resource, body)
    observed = asyncio.run(observer_of(cache).read_finetunejob(key, owner, NOW))
    found = finetunejob_plan.plan_finetunejob(observed, NOW)
    assert conditions(found.status)["Running"] == ("True", "InvalidSpec")
    assert found.actions == []
