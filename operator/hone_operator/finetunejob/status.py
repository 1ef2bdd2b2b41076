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
from hone_operator.finetunejob.attempts import update_attempts
from hone_operator.finetunejob.snapshot import JobView, ObservedFineTuneJob
from hone_operator.objects import child_names, timestamps
from hone_operator.objects.resources import JOBS, Object, build_merge_patch
from hone_operator.objects.timestamps import format_timestamp
from hone_operator.reconcile.conditions import Conditions
from hone_operator.reconcile.plan import Plan, build_delete

TRAINER_RUNNING = "TrainerRunning"


def update_status(
    observed: ObservedFineTuneJob, job: FineTuneJob, now: datetime, conditions: Conditions, result: Plan
) -> None:
    """Write into the status and the conditions how far the job is."""
    training, preparing = observed.training, observed.preparing
    if jobs.has_prepare_job(job) and preparing.find_condition("Complete"):
        completion.set_prepared(preparing, conditions, result)
    elif jobs.has_prepare_job(job) and _is_held_success(observed, preparing, 1, now):
        completion.set_prepared(preparing, conditions, result)
        result.actions += sidecars.plan_job_removal(preparing)
    if _is_held_success(observed, training, job.spec.resources.nodes, now) and not training.has_ended:
        result.actions += sidecars.plan_job_removal(training)
        completion.set_succeeded(
            observed.owner, job, training, {"lastTransitionTime": format_timestamp(now)}, conditions, result
        )
        return
    if finished := training.find_condition("Complete"):
        if training.success_state:
            completion.set_succeeded(observed.owner, job, training, finished, conditions, result)
            return
        _restart_for_result(training, conditions, result)
    elif finished := training.find_condition("Failed"):
        completion.set_failed(training, finished, conditions, result)
        return
    elif finished := preparing.find_condition("Failed"):
        completion.set_failed(preparing, finished, conditions, result)
        conditions.set("Prepared", False, *conditions.get_reason_and_message("Failed"))
        return
    conditions.set("Succeeded", False, "NotFinished", "The artifact is not complete yet.")
    conditions.set("Failed", False, "NotFinished", "No failure has ended the job.")
    if job.spec.suspend or (training.is_suspended and not training.is_about_to_end):
        waiting.set_suspended(observed, job, conditions, result)
        return
    if conditions.is_true("Suspended"):
        text = "The job resumes from its newest checkpoint." if result.status.get("progress") else "The job may begin."
        conditions.set("Suspended", False, "Resumed", text)
    trouble = next((each for each in observed.sync_failures if each.stops_pods), None)
    if trouble and not (training.running_pods or preparing.running_pods):
        conditions.set("Running", False, trouble.error.reason.name, trouble.error.format_message())
        return
    if result.actions:
        return
    if jobs.has_prepare_job(job) and not conditions.is_true("Prepared"):
        _set_preparing(observed, job, now, conditions, result)
    else:
        _set_training(observed, job, now, conditions, result)


def _is_held_success(observed: ObservedFineTuneJob, view: JobView, nodes: int, now: datetime) -> bool:
    """Return whether other containers keep the pods of a succeeded Job running for too long."""
    left = sidecars.get_seconds_left(sidecars.find_held_pods(view), observed.held_since, now)
    return sidecars.has_succeeded(view, nodes) and not left


def _restart_for_result(view: JobView, conditions: Conditions, result: Plan) -> None:
    """Start the trainer again after its pod with the result was deleted: it finds its artifact and reports at once."""
    if view.job is None:
        return
    result.actions = [build_delete(JOBS, view.job)]
    text = "The trainer's pod is gone, and its result with it: it is started again to report the artifact it left."
    conditions.set("Running", False, "ResultLost", text)


def _set_preparing(
    observed: ObservedFineTuneJob, job: FineTuneJob, now: datetime, conditions: Conditions, result: Plan
) -> None:
    view = observed.preparing
    if view.running_pods:
        result.status["stage"] = "Preparing"
        pod = view.running_pods[0]
        name, report = pod["metadata"]["name"], None
        if not job.spec.pod.host_network:  # there it serves no report, and another program may have the port
            report = _poll(pod, observed, result)
        doing = f"prepares: {report.activity}" if report and report.activity else "downloads, checks and tokenizes"
        reason, text = "Preparing", f"Pod {name} {doing}. No GPU is held."
    else:
        if not view.is_about_to_end:
            result.status["stage"] = "Pending"
        reason, text = waiting.explain_waiting(observed, view, now, result)
    conditions.set("Prepared", False, reason, text)
    conditions.set("Running", False, reason, text)


def _set_training(
    observed: ObservedFineTuneJob, job: FineTuneJob, now: datetime, conditions: Conditions, result: Plan
) -> None:
    view, status = observed.training, result.status
    if lead := view.lead_pod:
        status.setdefault("startTime", view.get_start_time(lead))
        _copy_report(_poll(lead, observed, result), status, now)
        if len(view.running_pods) == job.spec.resources.nodes:
            _set_running(observed, view, lead, now, conditions, result)
            return
    elif not view.is_about_to_end:
        status["stage"] = "Pending"
    conditions.set("Running", False, *waiting.explain_waiting(observed, view, now, result))


def _poll(pod: Object, observed: ObservedFineTuneJob, result: Plan) -> ProgressReport | None:
    """Have the pod polled, and return what it reported last."""
    uid, ip = pod["metadata"]["uid"], pod["status"].get("podIP")
    if ip:
        result.poll_urls = {uid: f"http://{join_address(ip, TRAINER_PORT)}/progress"}
    return observed.reports.get(uid)


def _set_running(
    observed: ObservedFineTuneJob, view: JobView, lead: Object, now: datetime, conditions: Conditions, result: Plan
) -> None:
    """Report whether a trainer whose pods all run is well."""
    uid = lead["metadata"]["uid"]
    report = observed.reports.get(uid)
    stepped = (result.status.get("progress") or {}).get("observedAt")
    found = liveness.judge_trainer(
        lead,
        report,
        observed.last_answer_at.get(uid),
        observed.cluster,
        now,
        liveness.DEFAULT_LIMITS,
        last_step_at=timestamps.parse_untrusted_time(stepped),
    )
    error = next(
        (lost for pod in view.running_pods if (lost := liveness.explain_lost_node(pod, observed.cluster))), found.error
    )
    result.requeue_after_seconds = found.recheck_seconds
    stopping = next((pod for pod in view.running_pods if "deletionTimestamp" in pod["metadata"]), None)
    names = ", ".join(sorted(pod["metadata"]["name"] for pod in view.running_pods))
    known = _find_reported_reason(lead, conditions) if report is None else None
    if known and (error.reason.name == known == TRAINER_SILENT.name if error else not stopping):
        # The operator was restarted: the earlier finding holds until the trainer answers.
        conditions.keep_previous("Running")
        result.requeue_after_seconds = liveness.RECHECK_INTERVAL.total_seconds()
    elif error:
        conditions.set("Running", True, error.reason.name, error.format_message())
    elif stopping:
        text = f"The trainer in pod {stopping['metadata']['name']} was asked to stop, and saves a checkpoint."
        conditions.set("Running", True, "TrainerStopping", text)
    else:
        doing = f": {report.activity}" if report and report.activity else ""
        text = f"The trainer runs in pod {names}{doing}."
        conditions.set("Running", True, TRAINER_RUNNING, text)


def _find_reported_reason(lead: Object, conditions: Conditions) -> str | None:
    """Return the reason with which an earlier pass reported this trainer as silent or stalled; None without one."""
    if not conditions.is_true("Running"):
        return None
    reason, text = conditions.get_reason_and_message("Running")
    is_about = f"Pod {lead['metadata']['name']} " in text and reason in (TRAINER_SILENT.name, STALLED.name)
    return reason if is_about else None


def _copy_report(report: ProgressReport | None, status: Object, now: datetime) -> None:
    if report is None:
        if status.get("stage") in ("Pending", "Suspended"):
            status["stage"] = "Preparing"
        return
    status["stage"] = report.stage
    if report.progress:
        status["progress"] = _add_observed_time(report.progress, status.get("progress"), now)
    if report.parameters:
        status["parameters"] = report.parameters.to_wire()
    if report.tracking is not None:
        status["tracking"] = [tracker.to_wire() for tracker in report.tracking]


def _add_observed_time(progress: Progress, before: Object | None, now: datetime) -> Object:
    """Return the progress for the status: with the moment when the operator first observed this step.

    That moment is by the operator's clock, since the clock of the trainer's node may be wrong.
    """
    found, known = progress.to_wire(), before or {}
    # A trainer that was started again may report the step that its predecessor ended with.
    is_same = (known.get("step"), known.get("updatedAt")) == (found["step"], found.get("updatedAt"))
    return found | {"observedAt": (is_same and known.get("observedAt")) or format_timestamp(now)}


def build_progress_patch(owner: Object, report: ProgressReport, trainers: list[Object], now: datetime) -> Object | None:
    """Return the status patch for a report that has only new steps; None where a full pass is needed."""
    before: Object = owner.get("status") or {}
    well = any(c["type"] == "Running" and c["reason"] == TRAINER_RUNNING for c in before.get("conditions") or [])
    is_same = report.parameters is None or report.parameters.to_wire() == before.get("parameters")
    if not well or not is_same or report.stage != before.get("stage") or report.progress is None:
        return None
    after = before | {"progress": _add_observed_time(report.progress, before.get("progress"), now)}
    if report.tracking is not None:
        after["tracking"] = [tracker.to_wire() for tracker in report.tracking]
    gpus = TrainerResources.model_validate(owner["spec"].get("resources") or {}).gpus
    update_attempts(after, trainers, child_names.TRAINER, gpus, now)
    return build_merge_patch(before, after)
