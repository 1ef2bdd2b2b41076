"""Judge whether a running trainer is well: its node is ready, it answers, and it makes steps.

In: the pod, its last report, and facts about nodes. Out: a failure for the status, and when to look again. Nothing here
ends a trainer.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from hone_api.artifacts.trainer_reports import Progress, ProgressReport
from hone_api.reasons import NODE_LOST, STALLED, TRAINER_SILENT, HoneError

from hone_operator.diagnosis import pod_state
from hone_operator.diagnosis.nodes import ClusterFacts
from hone_operator.objects.resources import Object
from hone_operator.objects.timestamps import parse_time, timestamp


@dataclass(frozen=True)
class Patience:
    """Limits after which the operator reports a trainer. None of them ends it."""

    # Importing torch, or one long call that keeps Python's lock, takes seconds to a minute or two.
    silent: timedelta = timedelta(minutes=5)
    # In steps: a step next to slow neighbours, or with the longest rows, takes a few times as long as usual.
    steps: int = 20
    # An evaluation or a checkpoint of a large model takes minutes, between two steps that take seconds.
    least: timedelta = timedelta(minutes=10)
    # The evaluation before training and the compilation of kernels come first, and no step has shown its duration yet.
    first_step: timedelta = timedelta(minutes=30)


PATIENCE = Patience()
LOOK_AGAIN = timedelta(seconds=20)


@dataclass(frozen=True)
class Judgement:
    """`error`: the failure, or None. `look_again`: after how many seconds time alone may change the result."""

    error: HoneError | None
    look_again: float


def judge(
    pod: Object,
    report: ProgressReport | None,
    heard: datetime | None,
    facts: ClusterFacts | None,
    now: datetime,
    patience: Patience,
    stepped: datetime | None = None,
) -> Judgement:
    """Return what is wrong with a trainer.

    `heard`: when it last answered, or was first polled. `stepped`: when the operator first observed its last step;
    without it, the trainer's own time of that step is used, by the clock of its node. Messages contain moments, not
    durations, so that they change only with what they report.
    """
    name = pod["metadata"]["name"]
    if error := lost(pod, facts):
        return Judgement(error, LOOK_AGAIN.total_seconds())
    moments = []
    if heard:
        moments.append(heard + patience.silent)
        if now > moments[-1]:
            words = f"Pod {name} runs, and its port 8080 has not answered since {timestamp(heard)}"
            return Judgement(HoneError(TRAINER_SILENT, words), LOOK_AGAIN.total_seconds())
    if report and report.stage == "Training" and report.progress and (stepped or report.progress.updated_at):
        progress = report.progress
        seconds = step_seconds(progress)
        limit = patience.first_step if seconds is None else max(patience.least, seconds * patience.steps * _SECOND)
        since = stepped or parse_time(str(progress.updated_at))
        moments.append(since + limit)
        if now > moments[-1]:
            return Judgement(HoneError(STALLED, _stalled(name, progress, since, limit)), LOOK_AGAIN.total_seconds())
    if is_suspect(pod, heard, now, patience):  # the facts about its node may be older than the symptom
        moments.append(now + LOOK_AGAIN)
    soonest = min(moments, default=now + patience.silent)
    return Judgement(None, max((soonest - now).total_seconds(), 1.0))


_SECOND = timedelta(seconds=1)


def step_seconds(progress: Progress) -> float | None:
    """Return the seconds of a step by the trainer's own estimate; None before it has one."""
    left = progress.total_steps - progress.step
    if progress.eta is None:
        return None
    return progress.eta / left if left > 0 else 0.0


def lost(pod: Object, facts: ClusterFacts | None) -> HoneError | None:
    """Return a failure where the node of a pod is gone or not ready, although the pod is reported as running."""
    name, node_name = pod["metadata"]["name"], pod["spec"].get("nodeName")
    if facts is None or node_name is None:
        return None
    node = facts.node(node_name)
    if node is None:
        return HoneError(NODE_LOST, f"Pod {name} ran on node {node_name}, which is gone")
    if node.not_ready is None:
        return None
    given_up = pod["metadata"].get("deletionTimestamp")
    then = "Kubernetes has given the pod up" if given_up else "Kubernetes gives the pod up when this lasts"
    return HoneError(
        NODE_LOST, f"Pod {name} runs on node {node_name}, which is not ready {node.not_ready.rstrip('.')}. {then}"
    )


def is_suspect(pod: Object, heard: datetime | None, now: datetime, patience: Patience) -> bool:
    """Return whether a running pod gives a reason to look at its node."""
    if pod_state.phase(pod) != "Running":
        return False
    ready = pod_state.condition(pod, "Ready")
    unready = ready is not None and ready["status"] != "True"
    return unready or "deletionTimestamp" in pod["metadata"] or (heard is not None and now - heard > patience.silent)


def _stalled(name: str, progress: Progress, since: datetime, limit: timedelta) -> str:
    seconds = step_seconds(progress)
    usual = f"a step takes about {seconds:.3g} s" if seconds is not None else "no step has been made before"
    return (
        f"Pod {name} answers, and has made no step since {timestamp(since)}, when {progress.step} of "
        f"{progress.total_steps} were done; {usual}, and more than {_words(limit)} is too long"
    )


def _words(limit: timedelta) -> str:
    seconds = limit.total_seconds()
    return f"{seconds / 60:.3g} minutes" if seconds >= 60 else f"{seconds:.3g} seconds"
