"""Explain a deadlocked roll-out: the new engine needs GPUs that the old one holds until the new one is ready."""

import re

from hone_api.reasons import UNSCHEDULABLE, HoneError

from hone_operator.diagnosis.node_fit import read_pod_requirements
from hone_operator.objects.quantity import format_resource_amount
from hone_operator.objects.resources import Object

_HASH = "pod-template-hash"


def explain_deadlock(error: HoneError, pod: Object, pods: list[Object], deployment: Object | None) -> HoneError:
    """Return the error of a pod that does not start; or one that names the older engines of its service as the reason.

    `pods` are all pods of the service.
    """
    strategy = ((deployment or {}).get("spec") or {}).get("strategy") or {}
    gpu = read_pod_requirements(pod).gpu
    if error.reason is not UNSCHEDULABLE or gpu is None or strategy.get("type") == "Recreate":
        return error
    if not re.search(rf"Insufficient {re.escape(gpu)}|cannot allocate all claims", error.message):
        return error
    older = [other for other in pods if _is_older(other, pod) and read_pod_requirements(other).gpu == gpu]
    if not older:
        return error
    held = format_resource_amount(gpu, sum(read_pod_requirements(other).resources[gpu] for other in older))
    needed = format_resource_amount(gpu, read_pod_requirements(pod).resources[gpu])
    found = f"{error.message}. The engines of before this roll-out hold {held}, and end when it is ready"
    remedy = (
        "Set spec.strategy.type: Recreate, which ends them first, so that the service does not answer until the new "
        f"ones are ready. Or free {needed} on a node, or add one: the roll-out then continues."
    )
    return HoneError(UNSCHEDULABLE, found, remedy=remedy)


def _is_older(other: Object, pod: Object) -> bool:
    """Return whether the other pod has a node and another template, and has not ended."""
    theirs, own = (((one["metadata"].get("labels") or {}).get(_HASH)) for one in (other, pod))
    has_ended = (other.get("status") or {}).get("phase") in ("Succeeded", "Failed")
    is_placed = bool(other["spec"].get("nodeName")) and not other["metadata"].get("deletionTimestamp")
    return theirs != own and is_placed and not has_ended
