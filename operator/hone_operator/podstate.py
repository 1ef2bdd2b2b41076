"""What a pod's status says, in Hone's reasons."""

from collections.abc import Iterable
from datetime import datetime, timedelta

from hone_api.reasons import (
    HOST_OUT_OF_MEMORY,
    IMAGE_PULL_FAILED,
    INTERNAL_ERROR,
    POD_NOT_STARTED,
    VOLUME_NOT_BOUND,
    HoneError,
)
from hone_api.reports import TerminationMessage
from pydantic import ValidationError

from hone_operator.nodes import ClusterFacts
from hone_operator.resources import Object
from hone_operator.scheduling import why_unschedulable

IMAGE_REASONS = {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable"}
NOT_STARTED_REASONS = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError", "StartError"}
BINDING_PATIENCE = timedelta(seconds=30)
STARTING_PATIENCE = timedelta(seconds=15)

_KILLED = 137


def parse_time(text: str) -> datetime:
    return datetime.fromisoformat(text)


def newest(pods: Iterable[Object]) -> Object | None:
    """The pod that was made last."""
    return max(pods, key=lambda pod: (pod["metadata"]["creationTimestamp"], pod["metadata"]["name"]), default=None)


def phase(pod: Object) -> str:
    return str((pod.get("status") or {}).get("phase", "Pending"))


def is_ready(pod: Object) -> bool:
    return any(c["type"] == "Ready" and c["status"] == "True" for c in _conditions(pod))


def container_status(pod: Object, container: str) -> Object:
    statuses = (pod.get("status") or {}).get("containerStatuses") or []
    return next((status for status in statuses if status["name"] == container), {})


def running_since(pod: Object, container: str) -> str | None:
    """RFC 3339 start of the container's current or last run; None before it first runs."""
    state = container_status(pod, container).get("state") or {}
    for kind in ("running", "terminated"):
        if started := (state.get(kind) or {}).get("startedAt"):
            return str(started)
    return None


def terminated(pod: Object, container: str) -> Object | None:
    """The `terminated` state of the container, when it has ended."""
    state: Object | None = (container_status(pod, container).get("state") or {}).get("terminated")
    return state


def termination_message(state: Object) -> TerminationMessage | None:
    """The trainer's last word; None when it left none that can be read."""
    try:
        return TerminationMessage.model_validate_json(state.get("message") or "")
    except ValidationError:
        return None


def failure_of(state: Object) -> tuple[str, str]:
    """Reason and message of a trainer that ended with a failure."""
    if state.get("reason") == "OOMKilled":
        error = HoneError(HOST_OUT_OF_MEMORY, HOST_OUT_OF_MEMORY.cause)
        return error.reason.name, error.sentence()
    if message := termination_message(state):
        return message.reason, message.message
    code = state.get("exitCode")
    words = "was killed" if code == _KILLED else f"ended with exit code {code}"
    error = HoneError(INTERNAL_ERROR, f"The trainer {words} and left no message")
    return error.reason.name, error.sentence()


def why_not_running(
    pod: Object,
    container: str,
    *,
    facts: ClusterFacts | None,
    warning: str | None,
    now: datetime,
) -> HoneError | None:
    """What keeps a pending pod from running; None while all goes its usual way."""
    scheduled = next((c for c in _conditions(pod) if c["type"] == "PodScheduled"), None)
    age = now - parse_time(pod["metadata"]["creationTimestamp"])
    if scheduled is None or scheduled["status"] != "True":
        if scheduled and scheduled.get("reason") == "Unschedulable":
            error = why_unschedulable(pod, scheduled.get("message", ""), facts)
            # A claim that was made just now is bound in a moment.
            return None if error.reason is VOLUME_NOT_BOUND and age < BINDING_PATIENCE else error
        if age > BINDING_PATIENCE and not scheduled:
            return HoneError(VOLUME_NOT_BOUND, "The pod waits for its volumes, or no scheduler looks at it")
        return None
    waiting = (container_status(pod, container).get("state") or {}).get("waiting") or {}
    reason, words = waiting.get("reason", ""), waiting.get("message", "")
    if reason in IMAGE_REASONS:
        return HoneError(IMAGE_PULL_FAILED, f"{reason}: {words}" if words else f"{reason} of {_image(pod)}")
    if reason in NOT_STARTED_REASONS:
        return HoneError(POD_NOT_STARTED, f"{reason}: {words}")
    if warning and age > STARTING_PATIENCE:
        return HoneError(POD_NOT_STARTED, warning)
    return None


def is_stuck(pod: Object, now: datetime) -> bool:
    """Whether a pod with a node takes so long to start that its events are worth reading."""
    if phase(pod) != "Pending":
        return False
    scheduled = any(c["type"] == "PodScheduled" and c["status"] == "True" for c in _conditions(pod))
    return scheduled and now - parse_time(pod["metadata"]["creationTimestamp"]) > STARTING_PATIENCE


def is_unschedulable(pod: Object) -> bool:
    return any(c["type"] == "PodScheduled" and c.get("reason") == "Unschedulable" for c in _conditions(pod))


def _conditions(pod: Object) -> list[Object]:
    return (pod.get("status") or {}).get("conditions") or []


def _image(pod: Object) -> str:
    return str(pod["spec"]["containers"][0]["image"])
