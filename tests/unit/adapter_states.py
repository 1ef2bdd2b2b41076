"""InferenceServices with adapters that engines load while they run, for tests that change one thing of them."""

from typing import Any

from hone_api.inferenceservices.adapter_sync import make_revision
from hone_operator.inferenceservice import children as inferenceservice_children
from hone_operator.inferenceservice.plan import ObservedInferenceService, plan_inferenceservice
from hone_operator.objects.resources import Object
from hone_operator.reconcile.plan import Apply
from observed import (
    DIGEST,
    NOW,
    finished_job,
    observed_service,
    pod,
    service_child,
    service_object,
    stored,
)


def on_one_claim(name: str, digest: str = DIGEST, commit: str = "c" * 40, **spec: Any) -> Object:
    """Return a finished job whose base is in a shared cache and whose artifact is on the shared claim `artifacts`."""
    job = finished_job(name, digest=digest, cache={"claim": {"name": "hub-cache"}}, **spec)
    job["status"]["artifact"] |= {"claim": "artifacts", "baseRevision": commit}
    return job


def planned(*jobs: Object, **spec: Any) -> dict[str, Object]:
    """Return the bodies that are applied, by kind."""
    found = plan_inferenceservice(observed_service(service_object(**{"engine": "vllm", **spec}), *jobs), NOW)
    return {action.resource.kind: action.body for action in found.actions if isinstance(action, Apply)}


def file_of(config_map: Object) -> str:
    return str(config_map["data"]["adapters.json"])


FAQ = on_one_claim("faq")


def ready(name: str = "p1", **annotations: str) -> Object:
    found = pod(name, container="engine", running={"startedAt": "2026-03-01T11:00:00Z"})
    found["status"]["conditions"].append({"type": "Ready", "status": "True"})
    found["spec"]["initContainers"] = [{"name": "adapters", "image": "x"}]
    found["metadata"]["annotations"] = annotations
    return found


def running(*pods: Object, **spec: Any) -> ObservedInferenceService:
    """Everything is there and up to date, and the sidecars have reported so."""
    spec = {"engine": "vllm", "replicas": len(pods), **spec}
    owner = service_object(**spec)
    children = planned(FAQ, **spec)
    deployment = stored(children["Deployment"], replicas=len(pods), updatedReplicas=len(pods), observedGeneration=1)
    deployment["metadata"]["generation"] = 1
    config_map = stored(children["ConfigMap"])
    revision = make_revision(file_of(config_map))
    answers = {one["metadata"]["uid"]: make_report(revision, faq=DIGEST) for one in pods}
    more = {
        "deployment": deployment,
        "adapters_config_map": config_map,
        "service": service_child(owner),
        "pods": list(pods),
    }
    if len(pods) > 1:
        more["budget"] = stored(inferenceservice_children.build_budget(owner, 1))
    return observed_service(owner, FAQ, answers=answers, **more)


def make_report(revision: str, *, error: Object | None = None, loaded: bool = True, **digests: str) -> Object:
    state = {"loaded": loaded, "error": error}
    adapters = {name: {"digest": digest, **state} for name, digest in digests.items()}
    return {"revision": revision, "models": ["org/base", *digests], "adapters": adapters}
