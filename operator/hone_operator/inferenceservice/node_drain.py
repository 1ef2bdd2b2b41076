"""An engine that is alone leaves a node that is being drained once another one answers in its place."""

from hone_operator.diagnosis import pod_state
from hone_operator.objects.resources import DEPLOYMENTS, Object
from hone_operator.reconcile.plan import Patch

# On the pod template: the pod whose node was cordoned. A change of it is a roll-out, which makes the new pod first.
MOVED = "hone.dev/moved-from"


def move(deployment: Object | None, pods: list[Object], cordoned: frozenset[str]) -> Patch | None:
    """Begins a roll-out when an engine of the present template answers on a cordoned node."""
    if deployment is None:
        return None
    present = _mark(deployment["spec"]["template"])
    for pod in pods:
        if pod["metadata"].get("deletionTimestamp") or not pod_state.is_ready(pod):
            continue
        if pod["spec"].get("nodeName") in cordoned and _mark(pod) == present:
            template = {"metadata": {"annotations": {MOVED: pod["metadata"]["name"]}}}
            return Patch(DEPLOYMENTS, deployment["metadata"]["name"], {"spec": {"template": template}})
    return None


def keep_mark(found: Object, desired: Object) -> None:
    """Let the pods of a move stay: without the mark on their template they would be replaced once more."""
    if mark := _mark(found["spec"]["template"]):
        metadata = desired["spec"]["template"]["metadata"]
        metadata["annotations"] = (metadata.get("annotations") or {}) | {MOVED: mark}


def _mark(body: Object) -> str | None:
    return (body.get("metadata", {}).get("annotations") or {}).get(MOVED)
