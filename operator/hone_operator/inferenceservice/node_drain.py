"""Move a single engine away from a node that is being drained: it ends once another engine answers in its place.

In: the Deployment, its pods, and the cordoned nodes. Out: a patch that begins a roll-out.
"""

from hone_operator.diagnosis import pod_state
from hone_operator.objects.resources import DEPLOYMENTS, Object
from hone_operator.reconcile.plan import Patch

# Annotation of the pod template: the pod whose node was cordoned. Setting it begins a roll-out, new pod first.
MOVED_ANNOTATION = "hone.dev/moved-from"


def plan_move(deployment: Object | None, pods: list[Object], cordoned: frozenset[str]) -> Patch | None:
    """Return a patch that begins a roll-out if an engine of the present template is ready on a cordoned node."""
    if deployment is None:
        return None
    present = _read_move_mark(deployment["spec"]["template"])
    for pod in pods:
        if pod["metadata"].get("deletionTimestamp") or not pod_state.is_ready(pod):
            continue
        if pod["spec"].get("nodeName") in cordoned and _read_move_mark(pod) == present:
            template = {"metadata": {"annotations": {MOVED_ANNOTATION: pod["metadata"]["name"]}}}
            return Patch(DEPLOYMENTS, deployment["metadata"]["name"], {"spec": {"template": template}})
    return None


def copy_move_mark(found: Object, desired: Object) -> None:
    """Copy the mark of a move to the desired Deployment: without it the moved pods would be replaced once more."""
    if mark := _read_move_mark(found["spec"]["template"]):
        metadata = desired["spec"]["template"]["metadata"]
        metadata["annotations"] = (metadata.get("annotations") or {}) | {MOVED_ANNOTATION: mark}


def _read_move_mark(body: Object) -> str | None:
    return (body.get("metadata", {}).get("annotations") or {}).get(MOVED_ANNOTATION)
