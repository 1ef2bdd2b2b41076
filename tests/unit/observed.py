"""Builders of what the operator observes, so that a test reads as one sentence."""

import copy
import json
from datetime import UTC, datetime
from typing import Any

from hone_api.finetunejobs.spec import FineTuneJob
from hone_api.inferenceservices.spec import InferenceService
from hone_operator.finetunejob import children, jobs
from hone_operator.finetunejob.snapshot import ObservedFineTuneJob
from hone_operator.inferenceservice import children as inferenceservice_children
from hone_operator.inferenceservice import plan as inferenceservice_plan
from hone_operator.objects.parsing import parse_object
from hone_operator.objects.pod_fields import select_fields
from hone_operator.objects.resources import Object
from hone_operator.pods.pod_spec import Images

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
BEFORE = "2026-03-01T11:00:00Z"
DIGEST = "sha256:" + "a" * 64
IMAGE = "hone-runtime:test"
IMAGES = Images(IMAGE, {"vllm": "vllm:test", "sglang": "sglang:test", "tgi": "tgi:test"})
PREPARED = {
    "stage": "Pending",
    "conditions": [
        {"type": "Prepared", "status": "True", "reason": "Prepared", "message": "", "lastTransitionTime": BEFORE}
    ],
}
"""The status of a FineTuneJob whose preparing Job has succeeded."""


def job_object(name: str = "faq", *, status: Object | None = None, labels: Object | None = None, **spec: Any) -> Object:
    body = {
        "apiVersion": "hone.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": name, "namespace": "team", "uid": f"uid-{name}", "generation": 1, "labels": labels or {}},
        "spec": {"model": {"name": "org/base"}, "dataset": {"name": "org/data"}, "resources": {"gpus": 0}, **spec},
    }
    return body | ({"status": status} if status else {})


def parsed_job(owner: Object) -> FineTuneJob:
    found = parse_object(FineTuneJob, owner)
    assert isinstance(found, FineTuneJob)
    return found


def stored(body: Object, uid: str = "uid-child", **status: Any) -> Object:
    """Return a child as the API server has it."""
    body = copy.deepcopy(body)
    body["metadata"] |= {"uid": uid, "resourceVersion": "1", "creationTimestamp": BEFORE}
    return body | {"status": status}


def observed_job(
    owner: Object, *pods: Object, job_conditions: list[Object] | None = None, **more: Any
) -> ObservedFineTuneJob:
    """Return a FineTuneJob all of whose children are there."""
    declared = parsed_job(owner)
    return ObservedFineTuneJob(
        owner,
        declared,
        IMAGE,
        config_map=stored(children.build_config_map(owner)),
        claim=stored(children.build_claim(owner, declared)),
        job=stored(jobs.build_train_job(owner, declared, IMAGE), conditions=job_conditions or [], failed=len(pods)),
        pods=[select_fields(pod) for pod in pods],
        **more,
    )


def job_condition(type_: str, reason: str = "", message: str = "") -> Object:
    return {"type": type_, "status": "True", "reason": reason, "message": message, "lastTransitionTime": BEFORE}


def pod(name: str = "p1", *, container: str = "trainer", scheduled: bool = True, **state: Any) -> Object:
    """Return a pod with a node whose container is in a state: `running=`, `waiting=` or `terminated=`."""
    phase = "Running" if "running" in state else "Pending"
    if "terminated" in state:
        phase = "Failed" if state["terminated"]["exitCode"] else "Succeeded"
    conditions = [{"type": "PodScheduled", "status": "True"}] if scheduled else []
    return {
        "metadata": {"name": name, "namespace": "team", "uid": f"uid-{name}", "creationTimestamp": BEFORE},
        "spec": {"containers": [{"name": container, "image": IMAGE}]},
        "status": {
            "phase": phase,
            "podIP": "10.0.0.7",
            "conditions": conditions,
            "containerStatuses": [{"name": container, "restartCount": 0, "state": state}] if state else [],
        },
    }


def unschedulable(words: str, **requests: str) -> Object:
    found = pod(scheduled=False)
    found["spec"]["containers"][0]["resources"] = {"requests": requests}
    found["status"]["conditions"] = [
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": words}
    ]
    return found


def terminated(exit_code: int, message: Object | str | None = None, *, reason: str = "Error") -> Object:
    words = json.dumps(message) if isinstance(message, dict) else message
    return {"exitCode": exit_code, "reason": reason, "message": words, "startedAt": BEFORE, "finishedAt": BEFORE}


def success(**more: Any) -> Object:
    """Return the termination message of a trainer that left an adapter."""
    artifact = {"kind": "adapter", "digest": DIGEST, "baseModel": "org/base"}
    return {
        "outcome": "Succeeded",
        "reason": "Succeeded",
        "message": "done",
        "progress": {"step": 10, "totalSteps": 10, "percent": 100},
        "parameters": {"trainable": 1, "total": 100},
        "metrics": {"trainLoss": 0.5},
        "artifact": artifact,
        **more,
    }


def failure(reason: str, message: str) -> Object:
    return {"outcome": "Failed", "reason": reason, "message": message}


def finished_job(name: str = "faq", kind: str = "adapter", *, digest: str = DIGEST, **spec: Any) -> Object:
    """Return a FineTuneJob that succeeded."""
    artifact = {"kind": kind, "claim": name, "path": f"team/{name}", "digest": digest, "baseModel": "org/base"}
    return job_object(name, status={"stage": "Succeeded", "artifact": artifact}, **spec)


def service_object(name: str = "chat", *, status: Object | None = None, **spec: Any) -> Object:
    body = {
        "apiVersion": "hone.dev/v1alpha1",
        "kind": "InferenceService",
        "metadata": {"name": name, "namespace": "team", "uid": f"uid-{name}", "generation": 1},
        "spec": {"model": {"fineTuneJob": {"name": "faq"}}, **spec},
    }
    return body | ({"status": status} if status else {})


def observed_service(owner: Object, *jobs: Object, **more: Any) -> inferenceservice_plan.ObservedInferenceService:
    """Return an InferenceService, and the FineTuneJobs that there are."""
    found: dict[str, Object | None] = {job["metadata"]["name"]: job for job in jobs}
    declared = parse_object(InferenceService, owner)
    more["pods"] = [select_fields(pod) for pod in more.get("pods", [])]
    return inferenceservice_plan.ObservedInferenceService(owner, declared, IMAGES, jobs=found, **more)


def service_child(owner: Object) -> Object:
    return stored(inferenceservice_children.build_service(owner))


def conditions(status: Object) -> dict[str, tuple[str, str]]:
    """Status and reason by type."""
    return {c["type"]: (c["status"], c["reason"]) for c in status.get("conditions", [])}


def message(status: Object, type_: str) -> str:
    return next(str(c["message"]) for c in status["conditions"] if c["type"] == type_)


def foreign(child: Object) -> Object:
    """Return the same name, made by somebody else."""
    child = copy.deepcopy(child)
    child["metadata"]["ownerReferences"] = []
    child["metadata"]["labels"] = {}
    return child


def orphaned(child: Object) -> Object:
    """Made by Hone, and without its owner reference."""
    child = copy.deepcopy(child)
    child["metadata"]["ownerReferences"] = []
    return child


def of_predecessor(child: Object) -> Object:
    """Made for an object of the same name that was deleted."""
    child = copy.deepcopy(child)
    child["metadata"]["ownerReferences"][0]["uid"] = "uid-earlier"
    return child
