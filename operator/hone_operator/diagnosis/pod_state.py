"""Read a pod's status, and explain it with Hone's reasons.

In: a pod, with facts about nodes and events about it. Out: what keeps it from running. Pods that ended: pod_failure.py.
"""

from collections.abc import Iterable
from datetime import datetime, timedelta

from hone_api.reasons import POD_NOT_STARTED, UNSCHEDULABLE, VOLUME_NOT_BOUND, HoneError

from hone_operator.diagnosis import autoscalers, containers, image_pull, volumes
from hone_operator.diagnosis.autoscalers import ScalingReport
from hone_operator.diagnosis.nodes import ClusterNodes
from hone_operator.diagnosis.unschedulable import explain_unschedulable
from hone_operator.objects.resources import Object, find_condition
from hone_operator.objects.timestamps import has_lasted, parse_time

NOT_STARTED_REASONS = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError", "StartError"}
BINDING_GRACE = timedelta(seconds=30)
STARTING_GRACE = timedelta(seconds=15)


def find_newest_pod(pods: Iterable[Object]) -> Object | None:
    """Return the pod that was created last."""
    return max(pods, key=lambda pod: (pod["metadata"]["creationTimestamp"], pod["metadata"]["name"]), default=None)


def get_phase(pod: Object) -> str:
    return str((pod.get("status") or {}).get("phase", "Pending"))


def is_ready(pod: Object) -> bool:
    ready = find_condition(pod, "Ready")
    return ready is not None and ready["status"] == "True"


def get_container_status(pod: Object, container: str) -> Object:
    """Return the status of a container or init container; an empty one where there is none."""
    found = pod.get("status") or {}
    statuses = [*(found.get("initContainerStatuses") or []), *(found.get("containerStatuses") or [])]
    return next((status for status in statuses if status["name"] == container), {})


def get_image(pod: Object, container: str) -> str:
    containers = [*(pod["spec"].get("initContainers") or []), *pod["spec"]["containers"]]
    return next((str(one["image"]) for one in containers if one["name"] == container), "")


def get_start_time(pod: Object, container: str) -> str | None:
    """Return the start of the container's current or last run (RFC 3339); None before its first run."""
    state = get_container_status(pod, container).get("state") or {}
    for kind in ("running", "terminated"):
        if started := (state.get(kind) or {}).get("startedAt"):
            return str(started)
    return None


def get_terminated_state(pod: Object, container: str) -> Object | None:
    """Return the `terminated` state of the container; None while it has not ended."""
    state: Object | None = (get_container_status(pod, container).get("state") or {}).get("terminated")
    return state


def explain_not_running(
    pod: Object,
    container: str,
    *,
    cluster: ClusterNodes | None,
    warning: str | None,
    now: datetime,
    scaling: ScalingReport | None = None,
) -> HoneError | None:
    """Return what keeps a pending pod from running; None while it starts as usual.

    `warning`: for a pod without a node, what its claims lack; for a pod with one, the newest warning about it.
    `scaling`: what an autoscaler reports about a pod without a node.
    """
    scheduled = find_condition(pod, "PodScheduled")
    if scheduled is None or scheduled["status"] != "True":
        error = _explain_no_node(pod, scheduled, cluster, warning, scaling)
        # A new claim is bound within moments, and a scheduler needs a moment as well.
        waits = error.reason is VOLUME_NOT_BOUND or scheduled is None
        return None if waits and not _is_older(pod, BINDING_GRACE, now) else error
    waiting = (get_container_status(pod, container).get("state") or {}).get("waiting") or {}
    reason, text = waiting.get("reason", ""), waiting.get("message", "")
    if reason in image_pull.IMAGE_PULL_REASONS:
        return image_pull.explain_image_pull(reason, text, get_image(pod, container))
    if reason in NOT_STARTED_REASONS:
        return HoneError(POD_NOT_STARTED, f"{reason}: {text}", remedy=containers.advise_on_start(text))
    if warning and _is_older(pod, STARTING_GRACE, now):
        return volumes.explain_mount_failure(warning)
    return None


def _explain_no_node(
    pod: Object,
    scheduled: Object | None,
    cluster: ClusterNodes | None,
    warning: str | None,
    scaling: ScalingReport | None,
) -> HoneError:
    if scheduled is None and not (pod.get("status") or {}).get("nominatedNodeName"):
        name = pod["spec"].get("schedulerName", "default-scheduler")
        remedy = "Correct spec.pod.schedulerName, or look whether that scheduler runs."
        return HoneError(UNSCHEDULABLE, f"The scheduler {name} has not looked at the pod yet", remedy=remedy)
    if scheduled is None:  # a node is nominated, and the volumes are being bound
        return HoneError(VOLUME_NOT_BOUND, warning or "The pod's volumes are being provisioned")
    text = scheduled.get("message", "")
    if scheduled.get("reason") == "SchedulingGated":
        gates = ", ".join(str(gate["name"]) for gate in pod["spec"].get("schedulingGates") or [])
        remedy = "Whatever set the gate has to remove it."
        return HoneError(UNSCHEDULABLE, f"The pod is held back by the scheduling gate {gates}", remedy=remedy)
    error = explain_unschedulable(pod, text, cluster)
    if error.reason is VOLUME_NOT_BOUND and warning:
        return HoneError(VOLUME_NOT_BOUND, warning)
    if scaling and error.reason is UNSCHEDULABLE and "nominatedNodeName" not in (pod.get("status") or {}):
        return autoscalers.explain_scaling(text, scaling)
    return error


def is_slow_to_start(pod: Object, now: datetime) -> bool:
    """Return whether a pod with a node takes so long to start that its events should be read."""
    if get_phase(pod) != "Pending":
        return False
    return has_node(pod) and _is_older(pod, STARTING_GRACE, now)


def waits_for_volumes(pod: Object, now: datetime) -> bool:
    """Return whether a pod without a node has waited so long that its claims should be read."""
    if get_phase(pod) != "Pending" or not _is_older(pod, BINDING_GRACE, now):
        return False
    scheduled = find_condition(pod, "PodScheduled")
    if scheduled is None:
        return True
    return is_unschedulable(pod) and explain_unschedulable(pod, scheduled.get("message", ""), None).reason is (
        VOLUME_NOT_BOUND
    )


def waits_for_node(pod: Object, now: datetime) -> bool:
    """Return whether a pod has waited for a node so long that an autoscaler may have reported about it."""
    if get_phase(pod) != "Pending" or not is_unschedulable(pod):
        return False
    return _is_older(pod, STARTING_GRACE, now)


def is_unschedulable(pod: Object) -> bool:
    scheduled = find_condition(pod, "PodScheduled")
    # The scheduler found a node and failed later, such as by a volume that nobody provisioned in time.
    return scheduled is not None and scheduled.get("reason") in ("Unschedulable", "SchedulerError")


def has_node(pod: Object) -> bool:
    scheduled = find_condition(pod, "PodScheduled")
    return scheduled is not None and scheduled["status"] == "True"


def _is_older(pod: Object, age: timedelta, now: datetime) -> bool:
    return has_lasted(parse_time(pod["metadata"]["creationTimestamp"]), age, now)
