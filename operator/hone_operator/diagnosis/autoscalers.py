"""Read what an autoscaler of nodes reports about a pod that no node takes.

Cluster Autoscaler and Karpenter report it as events about the pod. In: those events. Out: whether a node comes. Next:
pod_state.py, which uses it instead of the diagnosis from the present nodes.
"""

from dataclasses import dataclass

from hone_api.reasons import SCALING_UP, UNSCHEDULABLE, HoneError

from hone_operator.objects.resources import Object

# Reasons of the events with which Cluster Autoscaler and Karpenter report that they add a node.
SCALE_UP_REASONS = frozenset({"TriggeredScaleUp", "Nominated"})
NO_SCALE_UP_REASONS = frozenset({"NotTriggerScaleUp", "FailedScaleUp", "FailedToScaleUp", "NoCompatibleInstanceTypes"})
_KARPENTER = "karpenter"


@dataclass(frozen=True)
class ScalingReport:
    """The autoscaler's newest report about a pod: `message` is its own text."""

    adds_node: bool
    message: str


def is_scaling_report(event: Object) -> bool:
    """Return whether an event about a pod comes from an autoscaler."""
    reason = event.get("reason")
    if reason in SCALE_UP_REASONS or reason in NO_SCALE_UP_REASONS:
        return True
    reporter = event.get("reportingComponent") or (event.get("source") or {}).get("component") or ""
    return reason == "FailedScheduling" and str(reporter).startswith(_KARPENTER)


def read_scaling_report(event: Object) -> ScalingReport:
    """Return what an autoscaler's event reports."""
    return ScalingReport(event.get("reason") in SCALE_UP_REASONS, str(event.get("message") or "").strip().rstrip("."))


def explain_scaling(scheduler: str, scaling: ScalingReport) -> HoneError:
    """Return the failure of a pod without a node. `scheduler`: the scheduler's message."""
    if scaling.adds_node:
        return HoneError(SCALING_UP, f"{scheduler.rstrip('.')}. The autoscaler adds a node: {scaling.message}")
    return HoneError(
        UNSCHEDULABLE,
        f"{scheduler.rstrip('.')}. The autoscaler adds no node: {scaling.message}",
        remedy="Let a node pool give what the pod asks for, and raise its maximum where it is reached; or change what "
        "the message names in spec.resources, spec.pod.nodeSelector, spec.pod.tolerations or spec.pod.affinity.",
    )
