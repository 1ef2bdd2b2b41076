"""Judge whether a running trainer is well: its node is ready, it answers, and it makes steps.

In: the pod, its last report, and facts about nodes. Out: a failure for the status, and when to look again. Nothing here
ends a trainer.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from hone_api.artifacts.trainer_reports import Progress, ProgressReport
from hone_api.reasons import NODE_LOST, STALLED, TRAINER_SILENT, HoneError

from hone_operator.diagnosis import pod_state
from hone_operator.diagnosis.nodes import ClusterNodes
from hone_operator.objects.resources import Object, find_condition
from hone_operator.objects.timestamps import format_timestamp, parse_time


@dataclass(frozen=True)
class LivenessLimits:
    """Limits after which the operator reports a trainer. None of them ends it."""

    # Importing torch, or one long call that keeps Python's lock, takes seconds to a minute or two.
    max_silence: timedelta = timedelta(minutes=5)
    # In steps: a step next to slow neighbours, or with the longest rows, takes a few times as long as usual.
    max_step_lengths: int = 20
    # An evaluation or a checkpoint of a large model takes minutes, between two steps that take seconds.
    min_stall: timedelta = timedelta(minutes=10)
    # The evaluation before training and the compilation of kernels come first, and no step has shown its duration yet.
    max_first_step: timedelta = timedelta(minutes=30)


DEFAULT_LIMITS = LivenessLimits()
RECHECK_INTERVAL = timedelta(seconds=20)


@dataclass(frozen=True)
class TrainerHealth:
    """`error`: the failure, or None. `recheck_seconds`: after how many seconds time alone may change the result."""

    error: HoneError | None
    recheck_seconds: float


def judge_trainer(
    pod: Object,
    report: ProgressReport | None,
    last_answer_at: datetime | None,
    cluster: ClusterNodes | None,
    now: datetime,
    limits: LivenessLimits,
    last_step_at: datetime | None = None,
) -> TrainerHealth:
    """Return what is wrong with a trainer.

    `last_answer_at`: when it last answered, or was first polled. `last_step_at`: when the operator first observed its
    last step; without it, the trainer's own time of that step is used, by the clock of its node. Messages contain
    moments, not durations, so that they change only with what they report.
    """
    name = pod["metadata"]["name"]
    if error := explain_lost_node(pod, cluster):
        return TrainerHealth(error, RECHECK_INTERVAL.total_seconds())
    moments = []
    if last_answer_at:
        moments.append(last_answer_at + limits.max_silence)
        if now > moments[-1]:
            text = f"Pod {name} runs, and its port 8080 has not answered since {format_timestamp(last_answer_at)}"
            return TrainerHealth(HoneError(TRAINER_SILENT, text), RECHECK_INTERVAL.total_seconds())
    if report and report.stage == "Training" and report.progress and (last_step_at or report.progress.updated_at):
        progress = report.progress
        seconds = estimate_step_seconds(progress)
        limit = (
            limits.max_first_step
            if seconds is None
            else max(limits.min_stall, seconds * limits.max_step_lengths * _SECOND)
        )
        since = last_step_at or parse_time(str(progress.updated_at))
        moments.append(since + limit)
        if now > moments[-1]:
            return TrainerHealth(
                HoneError(STALLED, _describe_stall(name, progress, since, limit)), RECHECK_INTERVAL.total_seconds()
            )
    if is_suspect(pod, last_answer_at, now, limits):  # the facts about its node may be older than the symptom
        moments.append(now + RECHECK_INTERVAL)
    soonest = min(moments, default=now + limits.max_silence)
    return TrainerHealth(None, max((soonest - now).total_seconds(), 1.0))


_SECOND = timedelta(seconds=1)


def estimate_step_seconds(progress: Progress) -> float | None:
    """Return the seconds of a step by the trainer's own estimate; None before it has one."""
    left = progress.total_steps - progress.step
    if progress.eta is None:
        return None
    return progress.eta / left if left > 0 else 0.0


def explain_lost_node(pod: Object, cluster: ClusterNodes | None) -> HoneError | None:
    """Return a failure where the node of a pod is gone or not ready, although the pod is reported as running."""
    name, node_name = pod["metadata"]["name"], pod["spec"].get("nodeName")
    if cluster is None or node_name is None:
        return None
    node = cluster.find_node(node_name)
    if node is None:
        return HoneError(NODE_LOST, f"Pod {name} ran on node {node_name}, which is gone")
    if node.not_ready_reason is None:
        return None
    given_up = pod["metadata"].get("deletionTimestamp")
    then = "Kubernetes has given the pod up" if given_up else "Kubernetes gives the pod up when this lasts"
    return HoneError(
        NODE_LOST,
        f"Pod {name} runs on node {node_name}, which is not ready {node.not_ready_reason.rstrip('.')}. {then}",
    )


def is_suspect(pod: Object, last_answer_at: datetime | None, now: datetime, limits: LivenessLimits) -> bool:
    """Return whether a running pod gives a reason to look at its node."""
    if pod_state.get_phase(pod) != "Running":
        return False
    ready = find_condition(pod, "Ready")
    unready = ready is not None and ready["status"] != "True"
    return (
        unready
        or "deletionTimestamp" in pod["metadata"]
        or (last_answer_at is not None and now - last_answer_at > limits.max_silence)
    )


def _describe_stall(name: str, progress: Progress, since: datetime, limit: timedelta) -> str:
    seconds = estimate_step_seconds(progress)
    usual = f"a step takes about {seconds:.3g} s" if seconds is not None else "no step has been made before"
    return (
        f"Pod {name} answers, and has made no step since {format_timestamp(since)}, when {progress.step} of "
        f"{progress.total_steps} were done; {usual}, and more than {_format_duration(limit)} is too long"
    )


def _format_duration(limit: timedelta) -> str:
    seconds = limit.total_seconds()
    return f"{seconds / 60:.3g} minutes" if seconds >= 60 else f"{seconds:.3g} seconds"
