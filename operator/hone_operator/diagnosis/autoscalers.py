"""What an autoscaler of nodes reports about a pod that no node takes.

Cluster Autoscaler and Karpenter report it as events about the pod. In: those events. Out: whether a node comes. Next:
pod_state.py, which puts it in the place of the diagnosis made from the nodes that are there now.
"""

from dataclasses import dataclass

from hone_api.reasons import SCALING_UP, UNSCHEDULABLE, HoneError

from hone_operator.objects.resources import Object

# Cluster Autoscaler's and Karpenter's reasons of the event that a node is being added.
COMING = frozenset({"TriggeredScaleUp", "Nominated"})
NOT_COMING = frozenset({"NotTriggerScaleUp", "FailedScaleUp", "FailedToScaleUp", "NoCompatibleInstanceTypes"})
_KARPENTER = "karpenter"


@dataclass(frozen=True)
class Scaling:
    """The autoscaler's newest report about a pod: `message` is its own text."""

    comes: bool
    message: str


def is_report(event: Object) -> bool:
    """Whether an event about a pod is an autoscaler's."""
    reason = event.get("reason")
    if reason in COMING or reason in NOT_COMING:
        return True
    reporter = event.get("reportingComponent") or (event.get("source") or {}).get("component") or ""
    return reason == "FailedScheduling" and str(reporter).startswith(_KARPENTER)


def read_report(event: Object) -> Scaling:
    """Return what an autoscaler's event reports."""
    return Scaling(event.get("reason") in COMING, str(event.get("message") or "").strip().rstrip("."))


def explain(scheduler: str, scaling: Scaling) -> HoneError:
    """Return the failure that stands for a pod without a node. `scheduler`: the scheduler's message."""
    if scaling.comes:
        return HoneError(SCALING_UP, f"{scheduler.rstrip('.')}. The autoscaler adds a node: {scaling.message}")
    return HoneError(
        UNSCHEDULABLE,
        f"{scheduler.rstrip('.')}. The autoscaler adds no node: {scaling.message}",
        remedy="Let a node pool give what the pod asks for, and raise its maximum where it is reached; or change what "
        "the message names in spec.resources, spec.pod.nodeSelector, spec.pod.tolerations or spec.pod.affinity.",
    )
