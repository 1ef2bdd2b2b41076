"""Why a FineTuneJob does not run, and when the next pass should look again.

In: the snapshot and the Job that is due. Out: reason and message for the conditions. Called by status.py.
"""

from datetime import datetime

from hone_api.finetunejobs.spec import FineTuneJob

from hone_operator.diagnosis import liveness, pod_state
from hone_operator.diagnosis.admission import explain_refusal
from hone_operator.diagnosis.pod_failure import UNCOUNTED_REASONS
from hone_operator.finetunejob import sidecars
from hone_operator.finetunejob.snapshot import JobView, ObservedFineTuneJob
from hone_operator.objects import timestamps
from hone_operator.objects.resources import Object
from hone_operator.reconcile.conditions import Conditions
from hone_operator.reconcile.plan import Plan

RECHECK_SECONDS, MAX_RECHECK_SECONDS = 20.0, 300.0
QUEUED = "Queued"
FIRST_QUEUE_RECHECK_SECONDS, QUEUE_RECHECK_SECONDS = 2.0, 60.0


def set_suspended(observed: ObservedFineTuneJob, job: FineTuneJob, conditions: Conditions, result: Plan) -> None:
    """Report a suspended job: by the user, or by a queue or person that suspended the Job itself."""
    ending = [*observed.training.active_pods, *observed.preparing.active_pods, *observed.stale_pods]
    if ending and (
        lost := next((found for pod in ending if (found := liveness.explain_lost_node(pod, observed.cluster))), None)
    ):
        conditions.set("Suspended", False, lost.reason.name, lost.format_message())
        conditions.set("Running", False, lost.reason.name, lost.format_message())
        result.requeue_after_seconds = RECHECK_SECONDS
        return
    if ending:
        text = f"Pod {ending[0]['metadata']['name']} saves a checkpoint and ends."
        conditions.set("Suspended", False, "Suspending", text)
        conditions.set("Running", False, "Suspending", text)
        return
    step = (result.status.get("progress") or {}).get("step")
    where = f" at step {step}" if step else ""
    if job.spec.suspend:
        reason, text = (
            "Suspended",
            f"spec.suspend is true: no pod and no GPU is held. Set it to false to resume{where}.",
        )
    else:
        reason, text = QUEUED, _describe_queue(observed, where, conditions, result)
    result.status["stage"] = "Suspended"
    conditions.set("Suspended", True, reason, text)
    conditions.set("Running", False, reason, text)


def _describe_queue(observed: ObservedFineTuneJob, where: str, conditions: Conditions, result: Plan) -> str:
    """Return the message for a job in a queue.

    The queue's own reason is kept, since its events expire before the wait.
    """
    text = f"The Job is suspended by a queue or a user, and resumes{where} when it is unsuspended."
    if observed.queue_message:
        return f"{text} {observed.queue_message.rstrip('.')}."
    if conditions.is_true("Suspended") and conditions.get_reason_and_message("Suspended")[0] == QUEUED:
        result.requeue_after_seconds = QUEUE_RECHECK_SECONDS
        return conditions.get_reason_and_message("Suspended")[1]
    result.requeue_after_seconds = FIRST_QUEUE_RECHECK_SECONDS
    return text


def explain_waiting(observed: ObservedFineTuneJob, view: JobView, now: datetime, result: Plan) -> tuple[str, str]:
    """Return reason and message for a Job whose pods don't all run."""
    if not view.active_pods and view.is_about_to_end:
        return "TrainerEnded", "The trainer has ended; the Job is about to."
    if held := sidecars.find_held_pods(view):
        return _explain_held_pods(observed, view, held, now, result)
    error = None
    if pod := view.unstarted_pod:
        error = pod_state.explain_not_running(
            pod,
            view.container,
            cluster=observed.cluster,
            warning=observed.warning,
            now=now,
            scaling=observed.scaling,
        )
    elif observed.warning and not view.active_pods:
        error = explain_refusal(observed.warning)
    result.requeue_after_seconds = get_recheck_seconds(pod or view.job, now)
    if error:
        return error.reason.name, error.format_message()
    if observed.stale_pods:
        if lost := next(
            (found for pod in observed.stale_pods if (found := liveness.explain_lost_node(pod, observed.cluster))), None
        ):
            return lost.reason.name, lost.format_message()
        return (
            "EarlierTrainerEnding",
            f"Pod {observed.stale_pods[0]['metadata']['name']} of an earlier Job must end first.",
        )
    if failures := view.failures:
        last = failures[-1]
        reason = last.reason if last.reason in UNCOUNTED_REASONS else "Retrying"
        return reason, f"The trainer is restarted. Previous failure: {last.message}"
    if len(view.running_pods) > 0:
        return "PodStarting", f"{len(view.running_pods)} pods of the trainer run and wait for the others."
    return "PodStarting", "The trainer's pod is being made, scheduled or started."


def _explain_held_pods(
    observed: ObservedFineTuneJob, view: JobView, held: list[Object], now: datetime, result: Plan
) -> tuple[str, str]:
    """Return reason and message for pods that other containers keep running after the trainer's end."""
    if left := sidecars.get_seconds_left(held, observed.held_since, now):
        result.requeue_after_seconds = left
        return "TrainerEnded", "The trainer has ended; the other containers of its pod are about to."
    result.requeue_after_seconds = RECHECK_SECONDS
    if lost := next((lost for pod in held if (lost := liveness.explain_lost_node(pod, observed.cluster))), None):
        return lost.reason.name, lost.format_message()
    result.actions += sidecars.plan_failed_pod_ends(view)
    error = sidecars.explain_sidecars(view, held[0])
    failed = next((failure for failure in reversed(view.failures)), None)
    ends = f"{error.message}. The pod is being ended. Previous failure: {failed.message}" if failed else error.message
    return error.reason.name, f"{ends.rstrip('.')}. {error.remedy}"


def get_recheck_seconds(waits: Object | None, now: datetime) -> float:
    """Return the seconds until the next look, which grow with the wait. No watch reports changes of nodes."""
    if waits is None:
        return RECHECK_SECONDS
    waited = (now - timestamps.parse_time(waits["metadata"]["creationTimestamp"])).total_seconds()
    return min(max(RECHECK_SECONDS, waited / 5), MAX_RECHECK_SECONDS)
