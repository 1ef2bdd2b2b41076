"""Decide how far a FineTuneJob is: its stage, progress and conditions.

In: the snapshot, and the conditions of the last pass. Out: status fields, conditions, the pods to poll, and actions for
pods that don't end. The ends of Jobs: completion.py; reasons of waiting: waiting.py. Called by finetunejob/plan.py.
"""

from datetime import datetime

from hone_api.artifacts.trainer_reports import Progress, ProgressReport
from hone_api.finetunejobs.spec import FineTuneJob, TrainerResources
from hone_api.io.listening import join_address
from hone_api.layout import TRAINER_PORT
from hone_api.reasons import STALLED, TRAINER_SILENT

from hone_operator.diagnosis import liveness
from hone_operator.finetunejob import completion, jobs, sidecars, waiting
from hone_operator.finetunejob.attempts import account
from hone_operator.finetunejob.snapshot import JobView, ObservedFineTuneJob
from hone_operator.objects import child_names, timestamps
from hone_operator.objects.resources import JOBS, Object, merge_patch
from hone_operator.objects.timestamps import timestamp
from hone_operator.reconcile.conditions import Conditions
from hone_operator.reconcile.plan import Plan, removal

WELL = "TrainerRunning"


def tell(observed: ObservedFineTuneJob, job: FineTuneJob, now: datetime, conditions: Conditions, result: Plan) -> None:
    """Write into the status and the conditions how far the job is."""
    training, preparing = observed.training, observed.preparing
    if jobs.prepares_apart(job) and preparing.condition("Complete"):
        completion.prepared(preparing, conditions, result)
    elif jobs.prepares_apart(job) and _is_held_success(observed, preparing, 1, now):
        completion.prepared(preparing, conditions, result)
        result.actions += sidecars.remove(preparing)
    if _is_held_success(observed, training, job.spec.resources.nodes, now) and not training.has_ended:
        result.actions += sidecars.remove(training)
        completion.succeeded(observed.owner, job, training, {"lastTransitionTime": timestamp(now)}, conditions, result)
        return
    if finished := training.condition("Complete"):
        if training.success:
            completion.succeeded(observed.owner, job, training, finished, conditions, result)
            return
        _ask_again(training, conditions, result)
    elif finished := training.condition("Failed"):
        completion.failed(training, finished, conditions, result)
        return
    elif finished := preparing.condition("Failed"):
        completion.failed(preparing, finished, conditions, result)
        conditions.set("Prepared", False, *conditions.words_of("Failed"))
        return
    conditions.set("Succeeded", False, "NotFinished", "The artifact is not complete yet.")
    conditions.set("Failed", False, "NotFinished", "No failure has ended the job.")
    if job.spec.suspend or (training.is_suspended and not training.is_about_to_end):
        waiting.suspended(observed, job, conditions, result)
        return
    if conditions.holds("Suspended"):
        words = "The job goes on from its newest checkpoint." if result.status.get("progress") else "The job may begin."
        conditions.set("Suspended", False, "Resumed", words)
    trouble = next((each for each in observed.troubles if each.stops_pods), None)
    if trouble and not (training.running or preparing.running):
        conditions.set("Running", False, trouble.error.reason.name, trouble.error.sentence())
        return
    if result.actions:
        return
    if jobs.prepares_apart(job) and not conditions.holds("Prepared"):
        _preparing(observed, now, conditions, result)
    else:
        _training(observed, job, now, conditions, result)


def _is_held_success(observed: ObservedFineTuneJob, view: JobView, nodes: int, now: datetime) -> bool:
    """Return whether other containers keep the pods of a succeeded Job running for too long."""
    left = sidecars.seconds_left(sidecars.find_held(view), observed.held, now)
    return sidecars.has_succeeded(view, nodes) and not left


def _ask_again(view: JobView, conditions: Conditions, result: Plan) -> None:
    """Start the trainer again after its pod with the result was deleted: it finds its artifact and reports at once."""
    if view.job is None:
        return
    result.actions = [removal(JOBS, view.job)]
    words = "The trainer's pod is gone, and its result with it: it is started again to report the artifact it left."
    conditions.set("Running", False, "ResultLost", words)


def _preparing(observed: ObservedFineTuneJob, now: datetime, conditions: Conditions, result: Plan) -> None:
    view = observed.preparing
    if view.running:
        result.status["stage"] = "Preparing"
        pod = view.running[0]["metadata"]["name"]
        reason, words = "Preparing", f"Pod {pod} downloads, checks and tokenizes. No GPU is held."
    else:
        if not view.is_about_to_end:
            result.status["stage"] = "Pending"
        reason, words = waiting.why(observed, view, now, result)
    conditions.set("Prepared", False, reason, words)
    conditions.set("Running", False, reason, words)


def _training(
    observed: ObservedFineTuneJob, job: FineTuneJob, now: datetime, conditions: Conditions, result: Plan
) -> None:
    view, status = observed.training, result.status
    if lead := view.lead:
        status.setdefault("startTime", view.started(lead))
        uid, ip = lead["metadata"]["uid"], lead["status"].get("podIP")
        if ip:
            result.poll = {uid: f"http://{join_address(ip, TRAINER_PORT)}/progress"}
        _report(observed.reports.get(uid), status, now)
        if len(view.running) == job.spec.resources.nodes:
            _running(observed, view, lead, now, conditions, result)
            return
    elif not view.is_about_to_end:
        status["stage"] = "Pending"
    conditions.set("Running", False, *waiting.why(observed, view, now, result))


def _running(
    observed: ObservedFineTuneJob, view: JobView, lead: Object, now: datetime, conditions: Conditions, result: Plan
) -> None:
    """Report whether a trainer whose pods all run is well."""
    uid = lead["metadata"]["uid"]
    stepped = (result.status.get("progress") or {}).get("observedAt")
    found = liveness.judge(
        lead,
        observed.reports.get(uid),
        observed.heard.get(uid),
        observed.facts,
        now,
        liveness.PATIENCE,
        stepped=timestamps.read_time(stepped),
    )
    error = next((lost for pod in view.running if (lost := liveness.lost(pod, observed.facts))), found.error)
    result.requeue_after = found.look_again
    stopping = next((pod for pod in view.running if "deletionTimestamp" in pod["metadata"]), None)
    names = ", ".join(sorted(pod["metadata"]["name"] for pod in view.running))
    known = _known_trouble(lead, conditions) if uid not in observed.reports else None
    if known and (error.reason.name == known == TRAINER_SILENT.name if error else not stopping):
        # The operator was restarted: the earlier finding holds until the trainer answers.
        conditions.keep("Running")
        result.requeue_after = liveness.LOOK_AGAIN.total_seconds()
    elif error:
        conditions.set("Running", True, error.reason.name, error.sentence())
    elif stopping:
        words = f"The trainer in pod {stopping['metadata']['name']} is told to stop, and saves a checkpoint."
        conditions.set("Running", True, "TrainerStopping", words)
    else:
        conditions.set("Running", True, WELL, f"The trainer runs in pod {names}.")


def _known_trouble(lead: Object, conditions: Conditions) -> str | None:
    """Return the reason with which an earlier pass reported this trainer as silent or stalled; None without one."""
    if not conditions.holds("Running"):
        return None
    reason, words = conditions.words_of("Running")
    is_about = f"Pod {lead['metadata']['name']} " in words and reason in (TRAINER_SILENT.name, STALLED.name)
    return reason if is_about else None


def _report(report: ProgressReport | None, status: Object, now: datetime) -> None:
    if report is None:
        if status.get("stage") in ("Pending", "Suspended"):
            status["stage"] = "Preparing"
        return
    status["stage"] = report.stage
    if report.progress:
        status["progress"] = _observed(report.progress, status.get("progress"), now)
    if report.parameters:
        status["parameters"] = report.parameters.to_wire()


def _observed(progress: Progress, before: Object | None, now: datetime) -> Object:
    """Return the progress for the status: with the moment when the operator first observed this step.

    That moment is by the operator's clock, since the clock of the trainer's node may be wrong.
    """
    found, known = progress.to_wire(), before or {}
    # A trainer that was started again may report the step that its predecessor ended with.
    is_same = (known.get("step"), known.get("updatedAt")) == (found["step"], found.get("updatedAt"))
    return found | {"observedAt": (is_same and known.get("observedAt")) or timestamp(now)}


def progress_alone(owner: Object, report: ProgressReport, trainers: list[Object], now: datetime) -> Object | None:
    """Return the status patch for a report that has only new steps; None where a full pass is needed."""
    before: Object = owner.get("status") or {}
    well = any(c["type"] == "Running" and c["reason"] == WELL for c in before.get("conditions") or [])
    is_same = report.parameters is None or report.parameters.to_wire() == before.get("parameters")
    if not well or not is_same or report.stage != before.get("stage") or report.progress is None:
        return None
    after = before | {"progress": _observed(report.progress, before.get("progress"), now)}
    gpus = TrainerResources.model_validate(owner["spec"].get("resources") or {}).gpus
    account(after, trainers, child_names.TRAINER, gpus, now)
    return merge_patch(before, after)
