"""Why a FineTuneJob does not run, and when the next pass should look again.

In: the snapshot and the Job that is due. Out: reason and message for the conditions. Called by status.py.
"""

from datetime import datetime

from hone_api.finetunejobs.spec import FineTuneJob

from hone_operator.diagnosis import liveness, pod_state
from hone_operator.diagnosis.admission import refused
from hone_operator.diagnosis.pod_failure import NOT_COUNTED
from hone_operator.finetunejob import sidecars
from hone_operator.finetunejob.snapshot import JobView, ObservedFineTuneJob
from hone_operator.objects import timestamps
from hone_operator.objects.resources import Object
from hone_operator.reconcile.conditions import Conditions
from hone_operator.reconcile.plan import Plan

LOOK_AGAIN_SECONDS, LONGEST_SECONDS = 20.0, 300.0
QUEUED = "Queued"
QUEUE_FIRST_SECONDS, QUEUE_SECONDS = 2.0, 60.0


def suspended(observed: ObservedFineTuneJob, job: FineTuneJob, conditions: Conditions, result: Plan) -> None:
    """Report a suspended job: by the user, or by a queue or person that suspended the Job itself."""
    ending = [*observed.training.active, *observed.preparing.active, *observed.strays]
    if ending and (lost := next((found for pod in ending if (found := liveness.lost(pod, observed.facts))), None)):
        conditions.set("Suspended", False, lost.reason.name, lost.sentence())
        conditions.set("Running", False, lost.reason.name, lost.sentence())
        result.requeue_after = LOOK_AGAIN_SECONDS
        return
    if ending:
        words = f"Pod {ending[0]['metadata']['name']} saves a checkpoint and ends."
        conditions.set("Suspended", False, "Suspending", words)
        conditions.set("Running", False, "Suspending", words)
        return
    step = (result.status.get("progress") or {}).get("step")
    where = f" at step {step}" if step else ""
    if job.spec.suspend:
        reason, words = (
            "Suspended",
            f"spec.suspend is true: no pod and no GPU is held. Set it to false to go on{where}.",
        )
    else:
        reason, words = QUEUED, _queued(observed, where, conditions, result)
    result.status["stage"] = "Suspended"
    conditions.set("Suspended", True, reason, words)
    conditions.set("Running", False, reason, words)


def _queued(observed: ObservedFineTuneJob, where: str, conditions: Conditions, result: Plan) -> str:
    """Return the message for a job in a queue.

    The queue's own reason is kept, since its events expire before the wait.
    """
    words = f"The Job is suspended by a queue or a person, and goes on{where} when they let it."
    if observed.queue:
        return f"{words} {observed.queue.rstrip('.')}."
    if conditions.holds("Suspended") and conditions.words_of("Suspended")[0] == QUEUED:
        result.requeue_after = QUEUE_SECONDS
        return conditions.words_of("Suspended")[1]
    result.requeue_after = QUEUE_FIRST_SECONDS
    return words


def why(observed: ObservedFineTuneJob, view: JobView, now: datetime, result: Plan) -> tuple[str, str]:
    """Return reason and message for a Job whose pods don't all run."""
    if not view.active and view.is_about_to_end:
        return "TrainerEnded", "The trainer has ended; the Job is about to."
    if held := sidecars.find_held(view):
        return _held(observed, view, held, now, result)
    error = None
    if pod := view.late:
        error = pod_state.why_not_running(
            pod,
            view.container,
            facts=observed.facts,
            warning=observed.warning,
            now=now,
            scaling=observed.scaling,
        )
    elif observed.warning and not view.active:
        error = refused(observed.warning)
    result.requeue_after = look_again(pod or view.job, now)
    if error:
        return error.reason.name, error.sentence()
    if observed.strays:
        if lost := next((found for pod in observed.strays if (found := liveness.lost(pod, observed.facts))), None):
            return lost.reason.name, lost.sentence()
        return (
            "EarlierTrainerEnding",
            f"Pod {observed.strays[0]['metadata']['name']} of an earlier Job must end first.",
        )
    if failures := view.failures:
        last = failures[-1]
        reason = last.reason if last.reason in NOT_COUNTED else "Retrying"
        return reason, f"The trainer is started anew. Last time: {last.words}"
    if len(view.running) > 0:
        return "PodStarting", f"{len(view.running)} pods of the trainer run and wait for the others."
    return "PodStarting", "The trainer's pod is being made, scheduled or started."


def _held(
    observed: ObservedFineTuneJob, view: JobView, held: list[Object], now: datetime, result: Plan
) -> tuple[str, str]:
    """Return reason and message for pods that other containers keep running after the trainer's end."""
    if left := sidecars.seconds_left(held, observed.held, now):
        result.requeue_after = left
        return "TrainerEnded", "The trainer has ended; the other containers of its pod are about to."
    result.requeue_after = LOOK_AGAIN_SECONDS
    if lost := next((lost for pod in held if (lost := liveness.lost(pod, observed.facts))), None):
        return lost.reason.name, lost.sentence()
    result.actions += sidecars.end_failed(view)
    error = sidecars.explain(view, held[0])
    failed = next((failure for failure in reversed(view.failures)), None)
    ends = f"{error.message}. The pod is being ended. Last time: {failed.words}" if failed else error.message
    return error.reason.name, f"{ends.rstrip('.')}. {error.remedy}"


def look_again(waits: Object | None, now: datetime) -> float:
    """Return the seconds until the next look, which grow with the wait. No watch reports changes of nodes."""
    if waits is None:
        return LOOK_AGAIN_SECONDS
    waited = (now - timestamps.parse_time(waits["metadata"]["creationTimestamp"])).total_seconds()
    return min(max(LOOK_AGAIN_SECONDS, waited / 5), LONGEST_SECONDS)
