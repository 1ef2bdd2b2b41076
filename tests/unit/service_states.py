"""InferenceServices whose children are there, for tests that change one thing of them."""

from typing import Any

from hone_operator.inferenceservice import children as inferenceservice_children
from hone_operator.inferenceservice.plan import ObservedInferenceService, plan_inferenceservice
from hone_operator.objects.resources import Object
from hone_operator.reconcile.plan import Apply
from observed import (
    NOW,
    observed_service,
    pod,
    service_child,
    service_object,
    stored,
)


def applied(*jobs: Object, **spec: Any) -> dict[str, Object]:
    """Return what a new object gets, by kind."""
    actions = plan_inferenceservice(observed_service(service_object(**spec), *jobs), NOW).actions
    return {action.resource.kind: action.body for action in actions if isinstance(action, Apply)}


def deployment_of(*jobs: Object, **spec: Any) -> Object:
    return applied(*jobs, **spec)["Deployment"]


def running(job: Object, *pods: Object, answers: Object | None = None, **spec: Any) -> ObservedInferenceService:
    """Return a service whose children are there, with a Deployment status of all replicas up to date."""
    owner = service_object(**spec)
    replicas = spec.get("replicas", 1)
    deployment = stored(deployment_of(job, **spec), replicas=replicas, updatedReplicas=replicas, observedGeneration=1)
    deployment["metadata"]["generation"] = 1
    more = {"deployment": deployment, "service": service_child(owner), "pods": list(pods), "answers": answers or {}}
    if config_map := applied(job, **spec).get("ConfigMap"):
        more["adapters_config_map"] = stored(config_map)
    if replicas > 1:
        more["budget"] = stored(inferenceservice_children.build_budget(owner, 1))
    return observed_service(owner, job, **more)


def ready(name: str = "p1") -> Object:
    found = pod(name, container="engine", running={"startedAt": "2026-03-01T11:00:00Z"})
    found["status"]["conditions"].append({"type": "Ready", "status": "True"})
    return found
