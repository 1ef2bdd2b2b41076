"""An unchanged FineTuneJob is not compared again, and no change is missed because of that."""

import asyncio
import copy
from collections.abc import Callable
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any, cast

import pytest
from hone_operator.controller import Controller
from hone_operator.finetunejob import children, jobs
from hone_operator.finetunejob.plan import compute_settled_digest, plan_finetunejob
from hone_operator.finetunejob.snapshot import ObservedFineTuneJob, add_created
from hone_operator.kube.client import Api, ApiError
from hone_operator.objects.resources import CLAIMS, FINETUNEJOBS, WATCHED, Key, Object, Resource
from hone_operator.observability.metrics import Metrics
from hone_operator.pods.gpu_access import GpuAccess
from hone_operator.reconcile.plan import Create
from observed import IMAGE, IMAGES, NOW, PREPARED, job_condition, job_object, observed_job, parsed_job, pod, stored

Change = Callable[[ObservedFineTuneJob], Any]


def settled_job(**spec: Any) -> ObservedFineTuneJob:
    """Return a FineTuneJob whose children an earlier pass found to be as desired."""
    observed = observed_job(job_object(status=PREPARED, **spec))
    found = plan_finetunejob(observed, NOW)
    assert not found.actions
    assert found.settled_digest
    observed.settled_digest = found.settled_digest
    return observed


def owner_with(**spec: Any) -> Change:
    def change(observed: ObservedFineTuneJob) -> None:
        observed.owner["spec"] |= spec
        observed.spec = parsed_job(observed.owner)

    return change


def rejected(observed: ObservedFineTuneJob) -> None:
    observed.pods = [pod()]
    observed.pods[0]["status"] |= {"phase": "Failed", "reason": "UnexpectedAdmissionError", "message": "no"}


CHANGES: dict[str, Change] = {
    "image": lambda observed: setattr(observed, "image", "other:1"),
    "claim is gone": lambda observed: setattr(observed, "claim", None),
    "Job is gone": lambda observed: setattr(observed, "job", None),
    "stray pod": lambda observed: (setattr(observed, "job", None), setattr(observed, "stale_pods", [pod()])),
    "manifest is gone": lambda observed: setattr(observed, "config_map", None),
    "manifest is changed": lambda observed: observed.config_map["data"].update(more=""),
    "manifest has other words": lambda observed: observed.config_map["data"].update({"manifest.json": "{}"}),
    "manifest lost its digest": lambda observed: observed.config_map["metadata"].pop("annotations"),
    "Job has another limit": lambda observed: observed.job["spec"].update(backoffLimit=9),
    "Job has a deadline": lambda observed: observed.job["spec"].update(activeDeadlineSeconds=9),
    "Job lost a label": lambda observed: observed.job["metadata"]["labels"].popitem(),
    "Job lost its owner": lambda observed: observed.job["metadata"].pop("ownerReferences"),
    "Job has more annotations": lambda observed: observed.job["metadata"]["annotations"].update(more="x"),
    "Job has ended": lambda observed: observed.job["status"].update(conditions=[job_condition("Failed")]),
    "Job has another status": lambda observed: observed.job["status"].update(active=1),
    "Job has another version": lambda observed: observed.job["metadata"].update(resourceVersion="2"),
    "rejected pod": rejected,
    "limit": owner_with(backoffLimit=7),
    "1 in place of true": owner_with(pod={"shareProcessNamespace": True}),
    "deadline": owner_with(activeDeadlineSeconds=60),
    "suspension": owner_with(suspend=True),
    "resources": owner_with(resources={"gpus": 0, "cpu": "2"}),
    "pod": owner_with(pod={"nodeSelector": {"a": "b"}}),
    "queue": lambda observed: observed.owner["metadata"]["labels"].update({"kueue.x-k8s.io/queue-name": "q"}),
    "group": lambda observed: setattr(observed, "gpu_access", GpuAccess((7,))),
    "GPU": lambda observed: setattr(observed, "gpu", ("MI300X", 1)),
    "level": lambda observed: setattr(observed, "pod_level", "privileged"),
    "pod above the level": owner_with(pod={"hostNetwork": True}),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_has_the_same_effect_as_after_a_restart_of_the_operator(name: str) -> None:
    observed = settled_job()
    CHANGES[name](observed)
    fresh = copy.deepcopy(observed)
    fresh.settled_digest = None
    assert plan_finetunejob(observed, NOW).actions == plan_finetunejob(fresh, NOW).actions


@pytest.mark.parametrize("name", ["Job has another status", "Job has another version"])
def test_after_a_change_of_a_status_no_child_is_built(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    observed = settled_job()
    CHANGES[name](observed)
    monkeypatch.delattr(jobs, "build_train_job")
    monkeypatch.delattr(children, "build_config_map")
    assert not plan_finetunejob(observed, NOW).actions


def test_each_observed_field_is_in_the_digest_or_does_not_affect_children() -> None:
    in_digest = {
        "owner",
        "image",
        "gpu",
        "gpu_access",
        "stale_pods",
        "claim",
        "config_map",
        "service",
        "job",
        "prepare_job",
    }
    in_digest |= {"pods", "prepare_pods"}  # by the number of rejected pods
    # `spec` is made from the owner. The others affect the status, and earlier steps of the plan.
    others = {
        "spec",
        "push_job",
        "push_pods",
        "trainer_pods",
        "reports",
        "last_answer_at",
        "held_since",
        "cluster",
        "warning",
        "scaling",
        "queue_message",
        "sync_failures",
        "pod_level",
    }
    assert {field.name for field in fields(ObservedFineTuneJob)} == in_digest | others | {"settled_digest"}


def made_by_first_pass(change: Callable[[Object], Any] = lambda body: None) -> tuple[ObservedFineTuneJob, bytes | None]:
    """Return a new FineTuneJob with its created children, which the API server may `change`, and their digest."""
    observed = ObservedFineTuneJob(job_object(), parsed_job(job_object()), IMAGE)
    found = plan_finetunejob(observed, NOW)
    made = [stored(action.body) for action in found.actions if isinstance(action, Create)]
    for body in made:
        change(body)
    observed = add_created(observed, made)
    return observed, compute_settled_digest(observed, found, NOW)


def test_children_are_not_built_again_after_they_were_made(monkeypatch: pytest.MonkeyPatch) -> None:
    observed, digest = made_by_first_pass()
    assert digest
    observed.settled_digest = digest
    monkeypatch.delattr(jobs, "build_train_job")
    monkeypatch.delattr(children, "build_config_map")
    assert not plan_finetunejob(observed, NOW).actions


@pytest.mark.parametrize("field", ["backoffLimit", "activeDeadlineSeconds"])
def test_a_child_that_a_webhook_changed_is_compared_again(field: str) -> None:
    observed, digest = made_by_first_pass(lambda body: body["kind"] == "Job" and body["spec"].update({field: 77}))
    assert digest is None
    assert plan_finetunejob(observed, NOW).actions


class Server:
    """An API server of dicts that refuses a POST with the errors in `refusals`, by kind."""

    def __init__(self, *existing: Object, **refusals: ApiError) -> None:
        self.objects = {(body["kind"], body["metadata"]["name"]): body for body in existing}
        self.refusals = refusals
        self.seen: list[str] = []
        self.version = 100

    def store(self, body: Object) -> Object:
        self.version += 1
        metadata = {"uid": f"uid-{self.version}"} | body["metadata"] | {"resourceVersion": str(self.version)}
        metadata |= {"creationTimestamp": datetime.now(UTC).isoformat()}
        self.objects[body["kind"], metadata["name"]] = body | {"metadata": metadata}
        return copy.deepcopy(self.objects[body["kind"], metadata["name"]])

    async def create(self, resource: Resource, body: Object) -> Object:
        if resource.kind == "Event":
            return body
        self.seen.append(f"POST {resource.kind}")
        if refusal := self.refusals.get(resource.kind):
            raise refusal
        if (resource.kind, body["metadata"]["name"]) in self.objects:
            raise ApiError(409, "already exists")
        return self.store(body)

    async def get(self, resource: Resource, namespace: str, name: str) -> Object | None:
        self.seen.append(f"GET {resource.kind}")
        return copy.deepcopy(self.objects.get((resource.kind, name)))

    async def patch(self, resource: Resource, namespace: str, name: str, patch: Object, subresource: str) -> Object:
        self.seen.append(f"PATCH {resource.kind}/{subresource}")
        found = self.objects[resource.kind, name]
        return self.store(found | {"status": (found.get("status") or {}) | patch["status"]})

    async def close(self) -> None:
        pass


def passes(server: Server, number: int) -> list[list[str]]:
    """Return the requests of each of `number` passes over a new FineTuneJob."""

    async def run() -> list[list[str]]:
        controller = Controller(cast(Api, server), IMAGES, [], Metrics(), lambda: True)
        for resource in WATCHED:
            controller.handlers.on_relist(resource, "", set(), 1)
        controller.cache.put(FINETUNEJOBS, server.store(job_object()))
        found = []
        for _ in range(number):
            server.seen = []
            try:
                await controller.reconciler.reconcile(Key(FINETUNEJOBS, "team", "faq"))
            except ApiError:
                server.seen.append("error")
            found.append(server.seen)
        await controller.stop()
        return found

    return asyncio.run(run())


def test_a_new_object_needs_no_reads_before_its_children_are_created() -> None:
    made = ["POST PersistentVolumeClaim", "POST Job", "POST ConfigMap"]
    assert passes(Server(), 3) == [made, ["PATCH FineTuneJob/status"], []]


CLAIM: Object = {"kind": "PersistentVolumeClaim", "metadata": {"name": "faq", "namespace": "team"}}
REFUSALS = {
    "name": None,
    "quota": ApiError(403, "exceeded quota: storage"),
    "webhook": ApiError(500, "failed calling webhook"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_no_job_is_made_for_the_claim_of_somebody_else(name: str) -> None:
    refusal = REFUSALS[name]
    server = Server(**({CLAIMS.kind: refusal} if refusal else {}))
    server.store(CLAIM)
    first, second, third = passes(server, 3)
    assert first == ["POST PersistentVolumeClaim", "GET PersistentVolumeClaim"]
    assert second == ["GET PersistentVolumeClaim", "PATCH FineTuneJob/status"]
    assert third == ["GET PersistentVolumeClaim"]
    accepted = next(c for c in server.objects["FineTuneJob", "faq"]["status"]["conditions"] if c["type"] == "Accepted")
    assert accepted["reason"] == "NameConflict"


def test_a_refused_claim_that_does_not_exist_is_tried_again() -> None:
    found = passes(Server(**{CLAIMS.kind: ApiError(403, "exceeded quota: storage")}), 2)
    asked = ["POST PersistentVolumeClaim", "GET PersistentVolumeClaim"]
    assert found[0][:2] == asked
    assert found[1][:3] == ["GET PersistentVolumeClaim", *asked]
    assert not [request for requests in found for request in requests if request == "POST Job"]
