"""Choose the pod and the container whose log `hone logs` prints, and continue a log that was cut. Pure."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from hone_api.layout import COMPONENT_LABEL

from hone.errors import ClientError
from hone.objects import job_progress, views
from hone.objects.views import Object

TRAINER, PREPARE, ENGINE = "trainer", "prepare", "engine"
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+(Z|[+-]\d\d:\d\d)")
_INDEX = "batch.kubernetes.io/job-completion-index"


@dataclass(frozen=True)
class Target:
    """A container's log. `is_previous`: that of its run before the last restart."""

    pod: str
    container: str
    is_previous: bool = False
    others: int = 0


def choose_target(body: Object, pods: Sequence[Object], *, rank: int, is_previous: bool) -> Target:
    """Return the log to print: of the trainer, or of the preparation before it; of a service's newest engine pod.

    A pod of a Job never restarts its containers: the previous log of a job is that of the pod before the newest one.
    Raises ClientError when there is no log, with the reason.
    """
    if body["kind"] != "FineTuneJob":
        if rank:
            raise ClientError(f"--rank {rank}: an InferenceService has no ranks", "Leave out --rank.")
        engines = sort_newest_first(select_component(pods, ENGINE))
        if not engines:
            raise ClientError(*_explain_no_pod(body))
        container = choose_container(engines[0], ENGINE)
        if is_previous and not _count_restarts(engines[0], container):
            name = engines[0]["metadata"]["name"]
            raise ClientError(f"container {container} of pod {name} was never restarted", "Leave out --previous.")
        return Target(engines[0]["metadata"]["name"], container, is_previous, len(engines) - 1)
    return _choose_of_job(body, pods, rank, is_previous)


def _choose_of_job(body: Object, pods: Sequence[Object], rank: int, is_previous: bool) -> Target:
    resources = (body.get("spec") or {}).get("resources") or {}
    gpus, nodes = resources.get("gpus", 1), resources.get("nodes", 1)
    ranks = max(1, gpus) * nodes
    if rank >= ranks:
        raise ClientError(
            f"--rank {rank}: FineTuneJob {body['metadata']['name']} has the ranks 0 to {ranks - 1}",
            "Choose one of them.",
        )
    trainers = [pod for pod in select_component(pods, TRAINER) if find_pod_index(pod) == rank // max(1, gpus)]
    found, container = sort_newest_first(trainers), TRAINER
    if not found and not rank:
        found, container = sort_newest_first(select_component(pods, PREPARE)), PREPARE
    if not found:
        raise ClientError(*_explain_no_pod(body))
    if is_previous and len(found) < 2:
        raise ClientError(f"there is no pod before {found[0]['metadata']['name']}", "Leave out --previous.")
    chosen = found[1] if is_previous else found[0]
    return Target(chosen["metadata"]["name"], choose_container(chosen, container))


def select_component(pods: Iterable[Object], component: str) -> list[Object]:
    """Return the pods with a component's label."""
    return [pod for pod in pods if (pod["metadata"].get("labels") or {}).get(COMPONENT_LABEL) == component]


def sort_newest_first(pods: Iterable[Object]) -> list[Object]:
    """Return the pods, the newest first."""
    return sorted(pods, key=lambda pod: str(pod["metadata"].get("creationTimestamp")), reverse=True)


def find_pod_index(pod: Object) -> int:
    """Return the pod's index in an Indexed Job; 0 in another one."""
    metadata = pod["metadata"]
    text = (metadata.get("labels") or {}).get(_INDEX) or (metadata.get("annotations") or {}).get(_INDEX) or "0"
    return int(text) if text.isdecimal() else 0


def choose_container(pod: Object, main: str) -> str:
    """Return the container that works, or the init container that runs or failed before it.

    Raises ClientError with the reason when no container has started.
    """
    status = pod.get("status") or {}
    statuses = {each.get("name"): each for each in status.get("containerStatuses") or []}
    if _has_started(statuses.get(main) or {}):
        return main
    for each in reversed(status.get("initContainerStatuses") or []):
        if _has_started(each):
            return str(each["name"])
    name = pod["metadata"]["name"]
    raise ClientError(
        f"pod {name} has no log yet: {_explain_no_start(status, statuses.get(main) or {})}",
        f"Look again later, or see `kubectl describe pod {name}`.",
    )


def _has_started(status: Object) -> bool:
    states = (status.get("state") or {}, status.get("lastState") or {})
    return any(state.get("running") or state.get("terminated") for state in states)


def _count_restarts(pod: Object, container: str) -> int:
    statuses = (pod.get("status") or {}).get("containerStatuses") or []
    return next((each.get("restartCount") or 0 for each in statuses if each.get("name") == container), 0)


def _explain_no_start(status: Object, container: Object) -> str:
    waiting = (container.get("state") or {}).get("waiting") or {}
    for condition in status.get("conditions") or []:
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return f"it has no node: {condition.get('message') or condition.get('reason')}"
    if status.get("reason"):
        return f"{status['reason']}: {status.get('message') or ''}".rstrip(": ")
    if waiting:
        return f"container {container.get('name')} waits: " + ": ".join(
            filter(None, map(waiting.get, ("reason", "message")))
        )
    return f"its phase is {status.get('phase') or 'Unknown'}"


def _explain_no_pod(body: Object) -> tuple[str, str]:
    name, stage = body["metadata"]["name"], views.describe_phase(body)
    look = f"See `hone describe {views.find_kind(body).short}/{name}`."
    if body["kind"] != "FineTuneJob":
        return f"InferenceService {name} has no engine pod: its phase is {stage}", look
    if stage in ("Succeeded", "Failed"):
        spec = body.get("spec") or {}
        why = "spec.ttlSecondsAfterFinished" if spec.get("ttlSecondsAfterFinished") is not None else "someone"
        return f"FineTuneJob {name} has no pod: it has the stage {stage}, and {why} removed its pods and logs", look
    waiting = job_progress.explain_waiting(body)
    return f"FineTuneJob {name} has no pod: its stage is {stage}" + (f" ({waiting})" if waiting else ""), look


class Continuation:
    """The position in a log whose lines begin with their time, so that a second request does not repeat lines.

    The API server can start a log at a second only. Lines with equal times are counted.
    """

    def __init__(self) -> None:
        self.last = ""
        self._count = 0

    @property
    def since(self) -> str | None:
        """Return the time to request the log from; None before the first line."""
        return re.sub(r"\.\d+", "", self.last) or None

    def take(self, lines: Iterable[str]) -> Iterator[str]:
        """Yield the text of the lines of one answer that no answer before it had, without their times."""
        last, left = self.last, self._count
        for line in lines:
            time, _, text = line.partition(" ")
            if not _TIME.fullmatch(time):  # a message of the kubelet itself
                yield line
                continue
            if time < last:
                continue
            if time == last and left:
                left -= 1
                continue
            self._count = self._count + 1 if time == self.last else 1
            self.last = time
            yield text
