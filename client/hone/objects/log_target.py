"""Choose the pod and the container whose log `hone logs` prints, and continue a log that was cut. Pure."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from hone_api.layout import COMPONENT_LABEL

from hone.errors import ClientError
from hone.objects import job_progress, views
from hone.objects.views import Object

ENGINE = "engine"
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+(Z|[+-]\d\d:\d\d)")
_INDEX = "batch.kubernetes.io/job-completion-index"


class Stage(StrEnum):
    """A stage of a job that has pods of its own."""

    PREPARE = "prepare"
    TRAIN = "train"
    PUSH = "push"

    @property
    def component(self) -> str:
        """The label of the pods, which is also the name of their container."""
        return "trainer" if self is Stage.TRAIN else self.value


@dataclass(frozen=True)
class Target:
    """A container's log. `is_previous`: that of its run before the last restart.

    `others`: how many more engine pods there are. `other_stages`: those of a job that have pods as well.
    """

    pod: str
    container: str
    is_previous: bool = False
    others: int = 0
    other_stages: tuple[Stage, ...] = ()


def choose_target(
    body: Object, pods: Sequence[Object], *, rank: int, is_previous: bool, stage: Stage | None = None
) -> Target:
    """Return the log to print: of a job's stage, by default the trainer, or the preparation before it starts; of a
    service, of its newest engine pod.

    A pod of a Job never restarts its containers: the previous log of a job is that of the pod before the newest one.
    Raises ClientError when there is no log, with the reason.
    """
    if body["kind"] != "FineTuneJob":
        if rank:
            raise ClientError(f"--rank {rank}: an InferenceService has no ranks", "Leave out --rank.")
        if stage:
            raise ClientError(f"--stage {stage}: an InferenceService has no stages", "Leave out --stage.")
        engines = sort_newest_first(select_component(pods, ENGINE))
        if not engines:
            raise ClientError(*_explain_no_pod(body))
        container = choose_container(engines[0], ENGINE)
        if is_previous and not _count_restarts(engines[0], container):
            name = engines[0]["metadata"]["name"]
            raise ClientError(f"container {container} of pod {name} was never restarted", "Leave out --previous.")
        return Target(engines[0]["metadata"]["name"], container, is_previous, len(engines) - 1)
    return _choose_of_job(body, pods, rank, is_previous, stage)


def _choose_of_job(body: Object, pods: Sequence[Object], rank: int, is_previous: bool, stage: Stage | None) -> Target:
    by_stage = {each: sort_newest_first(select_component(pods, each.component)) for each in Stage}
    if rank and stage in (Stage.PREPARE, Stage.PUSH):
        raise ClientError(f"--rank {rank}: only trainers have ranks, and --stage is {stage}", "Leave out one of them.")
    by_stage[Stage.TRAIN] = _select_rank(body, by_stage[Stage.TRAIN], rank)
    chosen = stage or (Stage.TRAIN if by_stage[Stage.TRAIN] or rank else Stage.PREPARE)
    found = by_stage[chosen]
    if not found:
        raise ClientError(*(_explain_no_push(body) if chosen is Stage.PUSH else _explain_no_pod(body, stage)))
    if is_previous and len(found) < 2:
        raise ClientError(f"there is no pod before {found[0]['metadata']['name']}", "Leave out --previous.")
    pod = found[1] if is_previous else found[0]
    others = tuple(each for each in Stage if each is not chosen and by_stage[each])
    return Target(pod["metadata"]["name"], choose_container(pod, chosen.component), other_stages=others)


def _select_rank(body: Object, trainers: Iterable[Object], rank: int) -> list[Object]:
    """Return the trainer's pods that have this rank. Raises ClientError for a rank that the job does not have."""
    resources = (body.get("spec") or {}).get("resources") or {}
    gpus, nodes = resources.get("gpus", 1), resources.get("nodes", 1)
    ranks = max(1, gpus) * nodes
    if rank >= ranks:
        raise ClientError(
            f"--rank {rank}: FineTuneJob {body['metadata']['name']} has the ranks 0 to {ranks - 1}",
            "Choose one of them.",
        )
    return [pod for pod in trainers if find_pod_index(pod) == rank // max(1, gpus)]


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


def _explain_no_push(body: Object) -> tuple[str, str]:
    """Return why a job has no pod that pushes, and what to do."""
    name, wanted = body["metadata"]["name"], ((body.get("spec") or {}).get("output") or {}).get("push")
    title, look = (
        f"FineTuneJob {name} has no pod that pushes",
        f"See `hone describe {views.find_kind(body).short}/{name}`.",
    )
    if not wanted:
        return f"{title}: spec.output.push is empty", "Add a destination to spec.output.push."
    pushed = views.find_condition(body, "Pushed") or {}
    if pushed.get("status") == "True":
        return f"{title}: everything is pushed, and someone removed its pods and logs", look
    why = pushed.get("message") or f"its stage is {views.describe_phase(body)}, and it pushes once it has succeeded"
    return f"{title}: {why}", look


def _explain_no_pod(body: Object, wanted: Stage | None = None) -> tuple[str, str]:
    name, stage = body["metadata"]["name"], views.describe_phase(body)
    look = f"See `hone describe {views.find_kind(body).short}/{name}`."
    if body["kind"] != "FineTuneJob":
        return f"InferenceService {name} has no engine pod: its phase is {stage}", look
    if stage in ("Succeeded", "Failed"):
        spec = body.get("spec") or {}
        why = "spec.ttlSecondsAfterFinished" if spec.get("ttlSecondsAfterFinished") is not None else "someone"
        return f"FineTuneJob {name} has no pod: it has the stage {stage}, and {why} removed its pods and logs", look
    waiting = job_progress.explain_waiting(body)
    of_stage = f" of --stage {wanted}" if wanted else ""
    return f"FineTuneJob {name} has no pod{of_stage}: its stage is {stage}" + (f" ({waiting})" if waiting else ""), look


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
