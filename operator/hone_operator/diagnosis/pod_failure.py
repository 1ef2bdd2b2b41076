"""Explain why a pod ended without success.

In: the pod's status. Out: a Failure. The sources, by rank: an OOM kill, the trainer's termination message, a disruption
of the pod, the kubelet's refusal, the exit code.
"""

import re
from dataclasses import dataclass

from hone_api.artifacts.trainer_reports import TerminationMessage
from hone_api.reasons import (
    CATALOGUE,
    DISK_FULL,
    EVICTED,
    EVICTED_FOR_USE,
    HOST_OUT_OF_MEMORY,
    INTERNAL_ERROR,
    INTERRUPTED,
    NODE_LOST,
    POD_NOT_STARTED,
    POD_REJECTED,
    PREEMPTED,
    VOLUME_ACCESS_DENIED,
    HoneError,
    Reason,
)

from hone_operator.diagnosis import containers, volumes
from hone_operator.diagnosis.pod_state import get_phase, get_terminated_state
from hone_operator.objects.child_names import PUSH
from hone_operator.objects.resources import Object, find_condition

# Reasons of a pod's condition DisruptionTarget that are not evictions.
DISRUPTION_REASONS = {"PreemptionByScheduler": PREEMPTED, "DeletionByPodGC": NODE_LOST}
UNCOUNTED_REASONS = frozenset(
    reason.name for reason in (INTERRUPTED, EVICTED, EVICTED_FOR_USE, PREEMPTED, NODE_LOST, POD_REJECTED)
)
# Characters that are quoted of a termination message that is not the trainer's.
MAX_QUOTED_CHARACTERS = 500

# Names of the containers that do the work.
WORKING_CONTAINERS = frozenset({"trainer", "prepare", "push", "engine"})
_KILLED_EXIT_CODE = 137
# That of containerd for a container whose process it finds gone.
_LOST_EXIT_CODE = 255
_LIMITS = {
    'emptydir volume "shm"': "spec.resources.sharedMemory",
    "ephemeral": "spec.resources.limits.ephemeral-storage",
    "memory": "spec.resources.memory",
}
_SHORT_OF = re.compile(r"node was low on resource: (?P<resource>[\w-]+)")
_USED = re.compile(
    r"Container (?P<container>\S+) was using (?P<used>[^,\s]+), (?:request is|which exceeds its request of)"
)
_ONE_NUMA_NODE = (
    "The kubelet gives the pod only GPUs, CPUs and memory of one NUMA node: lower spec.resources.gpus and "
    "spec.resources.cpu to what one has, or ask whoever runs the node to set topologyManagerPolicy: best-effort."
)
# Reasons of a pod's status other than a refusal of the kubelet to admit it.
_KUBELETS_OWN = frozenset({"Evicted", "NodeShutdown", "Terminated", "Shutdown", "DeadlineExceeded", "NodeLost"})


@dataclass(frozen=True)
class PodFailure:
    """Why a pod failed, and when (`ended_at`). `exit_code` is None for a container that never ran or left no state."""

    reason: str
    message: str
    ended_at: str
    exit_code: int | None = None
    termination_message: TerminationMessage | None = None


def explain_pod_failure(pod: Object, container: str) -> PodFailure | None:
    """Return why the pod has failed; None when it has not."""
    state = get_terminated_state(pod, container)
    if get_phase(pod) != "Failed" if state is None else state["exitCode"] == 0:
        return None
    state = state or {}
    message = read_termination_message(state)
    reason, text = _explain_end(pod, container, state, message)
    disruption = find_condition(pod, "DisruptionTarget") or {}
    at = state.get("finishedAt") or disruption.get("lastTransitionTime") or pod["metadata"]["creationTimestamp"]
    return PodFailure(reason, text, str(at), state.get("exitCode"), message)


def read_termination_message(state: Object) -> TerminationMessage | None:
    """Return the trainer's result, as far as it can be parsed; None when it left none."""
    return TerminationMessage.recover(state.get("message") or "")


def _explain_end(pod: Object, container: str, state: Object, message: TerminationMessage | None) -> tuple[str, str]:
    if state.get("reason") == "OOMKilled":
        return _get_reason_and_message(explain_out_of_memory(pod, container))
    disruption = _explain_disruption(pod)
    if message:
        text = _add_claim(pod, container, message)
        if disruption and message.reason == INTERRUPTED.name:
            text = f"{text.rstrip('.')}. Why: {disruption.message.rstrip('.')}."
        # An image may write any text, but a reason, which is also a label of metrics, must be one of the catalogue.
        return message.reason if message.reason in CATALOGUE else INTERNAL_ERROR.name, text
    if disruption:
        return _get_reason_and_message(disruption)
    status, left = pod.get("status") or {}, " ".join((state.get("message") or "").split())
    if state.get("reason") in containers.START_FAILURES:
        text = f"{state['reason']}: {left[:MAX_QUOTED_CHARACTERS]}"
        return _get_reason_and_message(HoneError(POD_NOT_STARTED, text, remedy=containers.advise_on_start(left)))
    if _was_lost(state):
        return _get_reason_and_message(_explain_lost_container(pod))
    if not state and status.get("reason"):
        text = f"{status['reason']}: {status.get('message', '')}"
        if is_rejected(pod):
            found = f"Node {pod['spec'].get('nodeName')}: {text}"
            remedy = _ONE_NUMA_NODE if status["reason"] == "TopologyAffinityError" else None
            return _get_reason_and_message(HoneError(POD_REJECTED, found, remedy=remedy))
        return _get_reason_and_message(HoneError(POD_NOT_STARTED, text))
    code = state.get("exitCode")
    how = "was killed" if code == _KILLED_EXIT_CODE else containers.describe_exit(code)
    who = "push" if container == PUSH else "trainer"
    text = f"left a message that is not the {who}'s: {left[-MAX_QUOTED_CHARACTERS:]}" if left else "left no message"
    remedy = containers.advise_on_exit(code)
    return _get_reason_and_message(HoneError(INTERNAL_ERROR, f"The {who} {how} and {text}", remedy=remedy))


def _was_lost(state: Object) -> bool:
    """Return whether the kubelet or containerd only guesses that the container ended, as after a node's restart."""
    return state.get("reason") == "ContainerStatusUnknown" or (
        state.get("reason") == "Unknown" and state.get("exitCode") == _LOST_EXIT_CODE and not state.get("message")
    )


def _explain_lost_container(pod: Object) -> HoneError:
    node = pod["spec"].get("nodeName")
    return HoneError(
        NODE_LOST,
        f"Node {node} lost the container: the node or its container runtime was restarted, and how the container ended "
        "is not known",
        remedy=f"Look at `kubectl describe node {node}` and at the node's journal for why it restarted. Another pod "
        "continues from the newest checkpoint; backoffLimit counts this one.",
    )


def is_rejected(pod: Object) -> bool:
    """Return whether the kubelet did not admit the pod, so that none of its containers ever ran."""
    status = pod.get("status") or {}
    if get_phase(pod) != "Failed" or not status.get("reason") or status["reason"] in _KUBELETS_OWN:
        return False
    statuses = [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]
    return not any((one.get("state") or {}).get(kind) for one in statuses for kind in ("running", "terminated"))


def _add_claim(pod: Object, container: str, message: TerminationMessage) -> str:
    """Return the trainer's message with the claim that is mounted at the path that it names."""
    if message.reason not in (DISK_FULL.name, VOLUME_ACCESS_DENIED.name):
        return message.message
    found = volumes.find_claim_of_path(pod, container, message.message)
    if found is None:
        return message.message
    path, claim, folder = found
    where = f"{path} is {f'folder {folder} of ' if folder else ''}PersistentVolumeClaim {claim}."
    sentence, remedy = message.message.rstrip(), CATALOGUE[message.reason].remedy
    if remedy in sentence:
        head = sentence[: sentence.index(remedy)].rstrip()
        named = f"pvc {claim} --namespace {pod['metadata']['namespace']}"
        return f"{head} {where} {remedy.replace('pvc NAME', named)}"
    return f"{sentence} {where}"


def explain_out_of_memory(pod: Object, container: str) -> HoneError:
    """Return the failure of an OOM-killed container, with its memory limit."""
    containers = [*(pod["spec"].get("initContainers") or []), *pod["spec"]["containers"]]
    spec: Object = next((each for each in containers if each["name"] == container), {})
    limit = ((spec.get("resources") or {}).get("limits") or {}).get("memory")
    if limit is None:
        text = "The node ran out of memory, and the container, which has no limit of its own, was killed"
        return HoneError(
            HOST_OUT_OF_MEMORY, text, remedy="Set spec.resources.memory, so that the pod gets a node with enough."
        )
    return HoneError(HOST_OUT_OF_MEMORY, f"The container was killed for exceeding its memory limit of {limit}")


def _explain_disruption(pod: Object) -> HoneError | None:
    """Return the failure of a pod that was evicted, preempted or deleted from outside; None for any other."""
    status = pod.get("status") or {}
    target = find_condition(pod, "DisruptionTarget")
    node = pod["spec"].get("nodeName")
    if status.get("reason") == "Evicted":
        text = status.get("message", "")
        use = _advise_on_limit(text) or _advise_on_usage(text)
        return HoneError(EVICTED_FOR_USE if use else EVICTED, f"Node {node}: {text}", remedy=use)
    if target is None or target["status"] != "True":
        return None
    reason: Reason = DISRUPTION_REASONS.get(target.get("reason", ""), EVICTED)
    return HoneError(reason, f"{target.get('reason')} on node {node}: {target.get('message', '')}")


def _advise_on_limit(message: str) -> str | None:
    """Return a remedy for an eviction by the pod's own limit, which a new pod would exceed again; else None."""
    if "exceeds the" not in message and "exceeded its" not in message:
        return None
    return next((f"Raise {field}." for name, field in _LIMITS.items() if name in message.lower()), None)


def _advise_on_usage(message: str) -> str | None:
    """Return a remedy where the kubelet names a container of Hone that used more than its request; else None."""
    short = _SHORT_OF.search(message)
    used = {found["container"]: found["used"] for found in _USED.finditer(message)}
    # No field of the object sets the requests of an injected container.
    name = next((name for name in used if name in WORKING_CONTAINERS), None)
    if short is None or name is None:
        return None
    fields = {"memory": "spec.resources.memory", "ephemeral-storage": "spec.resources.requests.ephemeral-storage"}
    field = fields.get(short["resource"])
    if field is None:
        return None
    return f"Set {field} to more than the {used[name]} that the pod used, so that it gets a node with enough."


def _get_reason_and_message(error: HoneError) -> tuple[str, str]:
    return error.reason.name, error.format_message()
