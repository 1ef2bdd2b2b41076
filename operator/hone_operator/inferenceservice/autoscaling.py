"""Scale the engines by their load, with a HorizontalPodAutoscaler of the Deployment."""

from hone_api.inferenceservices.spec import InferenceServiceSpec
from hone_api.layout import INFERENCESERVICE_LABEL
from hone_api.reasons import LOAD_NOT_SERVED, HoneError

from hone_operator.objects.resources import DEPLOYMENTS, Object, find_condition
from hone_operator.reconcile.conditions import Conditions

SCALING_CONDITION = "ScalingActive"
# Requests of a pod, running and waiting. The adapter of custom.metrics.k8s.io computes it from the engines' metrics.
METRIC = "hone_engine_requests"


def get_max_replicas(spec: InferenceServiceSpec) -> int:
    """Return how many engines there may be at most."""
    return spec.autoscaling.max_replicas if spec.autoscaling else spec.replicas


def get_wanted_replicas(spec: InferenceServiceSpec, deployment: Object | None) -> int:
    """Return how many engines there should be: the number that the autoscaler set last, within its bounds."""
    if spec.autoscaling is None:
        return spec.replicas
    least, present = spec.autoscaling.min_replicas, 0
    if deployment is not None:
        present = deployment["spec"].get("replicas", 1)
    return min(max(present, least), spec.autoscaling.max_replicas)


def build_autoscaler(spec: InferenceServiceSpec, metadata: Object) -> Object:
    """Return the HorizontalPodAutoscaler. `metadata`: the one that all children have."""
    assert spec.autoscaling
    name = metadata["labels"][INFERENCESERVICE_LABEL]
    target = {"type": "AverageValue", "averageValue": str(spec.autoscaling.target_concurrency)}
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": metadata,
        "spec": {
            "scaleTargetRef": {"apiVersion": DEPLOYMENTS.api_version, "kind": DEPLOYMENTS.kind, "name": name},
            "minReplicas": spec.autoscaling.min_replicas,
            "maxReplicas": spec.autoscaling.max_replicas,
            "metrics": [{"type": "Pods", "pods": {"metric": {"name": METRIC}, "target": target}}],
        },
    }


def set_scaling_condition(observed: Object | None, conditions: Conditions) -> None:
    """Set the condition ScalingActive: whether the autoscaler knows the load, from its own condition."""
    active = find_condition(observed or {}, SCALING_CONDITION)
    if active is None:
        conditions.set(
            SCALING_CONDITION, False, "NotLookedYet", "The HorizontalPodAutoscaler has not looked at the load yet."
        )
    elif active["status"] == "True":
        conditions.set(
            SCALING_CONDITION,
            True,
            active.get("reason") or SCALING_CONDITION,
            active.get("message") or "The load is known.",
        )
    else:
        error = HoneError(LOAD_NOT_SERVED, active.get("message") or "The HorizontalPodAutoscaler knows no load")
        conditions.set(SCALING_CONDITION, False, error.reason.name, error.format_message())
