"""Why a trainer's pod has ended without success."""

from dataclasses import dataclass

from hone_api.reasons import (
    CATALOGUE,
    EVICTED,
    HOST_OUT_OF_MEMORY,
    INTERNAL_ERROR,
    INTERRUPTED,
    NODE_LOST,
    POD_NOT_STARTED,
    PREEMPTED,
    HoneError,
    Reason,
)
from hone_api.reports import TerminationMessage
from pydantic import ValidationError

from hone_operator.podstate import condition, phase, terminated
from hone_operator.resources import Object

DISRUPTIONS = {"PreemptionByScheduler": PREEMPTED, "DeletionByPodGC": NODE_LOST}
"""What a pod's condition DisruptionTarget says, where it is not an eviction."""
NOT_COUNTED = frozenset(reason.name for reason in (INTERRUPTED, EVICTED, PREEMPTED, NODE_LOST))

_KILLED = 137
_LIMITS = {"emptydir": "spec.resources.sharedMemory", "memory": "spec.resources.memory"}


@dataclass(frozen=True)
class Failure:
    """`exit_code` is None for a pod whose container never ran or left no trace."""

    reason: str
    words: str
    at: str
    exit_code: int | None = None
    message: TerminationMessage | None = None


def failure_of(pod: Object, container: str) -> Failure | None:
    """Why the pod has failed; None when it has not."""
    state = terminated(pod, container)
    if phase(pod) != "Failed" if state is None else state["exitCode"] == 0:
        return None
    state = state or {}
    message = termination_message(state)
    reason, words = _why(pod, container, state, message)
    disruption = condition(pod, "DisruptionTarget") or {}
    at = state.get("finishedAt") or disruption.get("lastTransitionTime") or pod["metadata"]["creationTimestamp"]
    return Failure(reason, words, str(at), state.get("exitCode"), message)


def termination_message(state: Object) -> TerminationMessage | None:
    """The trainer's last word; None when it left none that can be read."""
    try:
        return TerminationMessage.model_validate_json(state.get("message") or "")
    except ValidationError:
        return None


def _why(pod: Object, container: str, state: Object, message: TerminationMessage | None) -> tuple[str, str]:
    if state.get("reason") == "OOMKilled":
        return _named(out_of_memory(pod, container))
    disruption = _disruption(pod)
    if message:
        words = message.message
        if disruption and message.reason == INTERRUPTED.name:
            words = f"{words.rstrip('.')}. Why: {disruption.message.rstrip('.')}."
        # What an image says is anybody's text; a reason is one of the catalogue's, also as a label of metrics.
        return message.reason if message.reason in CATALOGUE else INTERNAL_ERROR.name, words
    if disruption:
        return _named(disruption)
    status = pod.get("status") or {}
    if not state and status.get("reason"):  # the kubelet did not admit the pod
        return _named(HoneError(POD_NOT_STARTED, f"{status['reason']}: {status.get('message', '')}"))
    code = state.get("exitCode")
    how = "was killed" if code == _KILLED else f"ended with exit code {code}"
    return _named(HoneError(INTERNAL_ERROR, f"The trainer {how} and left no message"))


def out_of_memory(pod: Object, container: str) -> HoneError:
    """With the limit that was too low."""
    spec: Object = next((each for each in pod["spec"]["containers"] if each["name"] == container), {})
    limit = ((spec.get("resources") or {}).get("limits") or {}).get("memory")
    if limit is None:
        words = "The node ran out of memory, and the container, which has no limit of its own, was killed"
        return HoneError(
            HOST_OUT_OF_MEMORY, words, remedy="Set spec.resources.memory, so that the pod gets a node with enough."
        )
    return HoneError(HOST_OUT_OF_MEMORY, f"The container was killed for exceeding its memory limit of {limit}")


def _disruption(pod: Object) -> HoneError | None:
    """Who or what ended the pod from outside."""
    status = pod.get("status") or {}
    target = condition(pod, "DisruptionTarget")
    node = pod["spec"].get("nodeName")
    if status.get("reason") == "Evicted":
        return HoneError(
            EVICTED, f"Node {node}: {status.get('message', '')}", remedy=_of_limit(status.get("message", ""))
        )
    if target is None or target["status"] != "True":
        return None
    reason: Reason = DISRUPTIONS.get(target.get("reason", ""), EVICTED)
    return HoneError(reason, f"{target.get('reason')} on node {node}: {target.get('message', '')}")


def _of_limit(words: str) -> str | None:
    """A limit of the pod's own, which a new pod would exceed again."""
    if "exceeds the" not in words:
        return None
    return next((f"Raise {field}." for name, field in _LIMITS.items() if name in words.lower()), None)


def _named(error: HoneError) -> tuple[str, str]:
    return error.reason.name, error.sentence()
