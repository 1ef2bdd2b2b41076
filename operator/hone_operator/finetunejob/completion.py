"""Write the end of a Job into the status of its FineTuneJob.

In: the Job with its pods, whose termination messages hold the result or the failure. Out: stage, conditions, artifact
and metrics of the status. Called by status.py.
"""

from hone_api.artifacts.trainer_reports import TerminationMessage
from hone_api.finetunejobs.spec import FineTuneJob
from hone_api.finetunejobs.status import Artifact
from hone_api.layout import make_artifact_path
from hone_api.reasons import ARTIFACT_MISSING, BACKOFF_LIMIT_EXCEEDED, DEADLINE_EXCEEDED, INTERNAL_ERROR, HoneError

from hone_operator.diagnosis.pod_failure import read_termination_message
from hone_operator.finetunejob import children
from hone_operator.finetunejob.snapshot import JobView
from hone_operator.objects import child_names
from hone_operator.objects.resources import Object
from hone_operator.reconcile.conditions import Conditions
from hone_operator.reconcile.plan import Plan


def set_prepared(view: JobView, conditions: Conditions, result: Plan) -> None:
    """Report that preparing succeeded, with the estimate and parameters of its pod, if the pod still exists."""
    if conditions.is_true("Prepared"):
        return
    message = read_termination_message(view.success_state) if view.success_state else None
    text = "The model and the dataset are downloaded, checked and tokenized."
    if message:
        text = message.message
        if message.estimate:
            result.status["estimate"] = message.estimate.to_wire()
        if message.parameters:
            result.status["parameters"] = message.parameters.to_wire()
    conditions.set("Prepared", True, "Prepared", text)


def set_succeeded(
    owner: Object, job: FineTuneJob, view: JobView, finished: Object, conditions: Conditions, result: Plan
) -> None:
    """Report the trainer's artifact, or a failure where it reported none. `finished`: the Job's condition."""
    message = read_termination_message(view.success_state) if view.success_state else None
    if message is None or message.artifact is None:
        error = HoneError(ARTIFACT_MISSING, "The trainer ended as if it had succeeded, and reported no artifact")
        _set_ended("Failed", view, finished, conditions, result, error.reason.name, error.format_message())
        return
    summary = message.artifact
    artifact = Artifact(
        kind=summary.kind,
        claim=children.get_output_claim(job),
        path=make_artifact_path(owner["metadata"]["namespace"], job.name),
        digest=summary.digest,
        base_model=summary.base_model,
        base_revision=summary.base_revision,
        base_config=summary.base_config,
    )
    _copy_final_report(message, result.status)
    result.status["artifact"] = artifact.to_wire()
    result.status["metrics"] = message.metrics
    text = f"The artifact {artifact.digest} is complete on claim {artifact.claim}, folder {artifact.path}."
    _set_ended("Succeeded", view, finished, conditions, result, "Succeeded", text)


def set_failed(view: JobView, finished: Object, conditions: Conditions, result: Plan) -> None:
    """Report that a Job failed for good, with the message of the pod that caused it, if that pod still exists."""
    message = str(finished.get("message", ""))
    cause = view.root_cause
    exceeded = finished.get("reason") == BACKOFF_LIMIT_EXCEEDED.name
    if cause and cause.termination_message:
        _copy_final_report(cause.termination_message, result.status)
    if finished.get("reason") == DEADLINE_EXCEEDED.name:
        limit = ((view.job or {}).get("spec") or {}).get("activeDeadlineSeconds")
        longer = "a deadline that has been removed since" if limit is None else f"{limit} s"
        error = HoneError(DEADLINE_EXCEEDED, f"The Job was active for longer than {longer}")
        reason, text = error.reason.name, error.format_message()
    elif cause:
        reason, text = cause.reason, cause.message
        if exceeded:
            attempts = (view.job or {}).get("status", {}).get("failed", 0)
            text = f"{text} ({BACKOFF_LIMIT_EXCEEDED.name}: {attempts} trainers failed.)"
    else:
        error = HoneError(BACKOFF_LIMIT_EXCEEDED if exceeded else INTERNAL_ERROR, message)
        reason, text = error.reason.name, error.format_message()
    _set_ended("Failed", view, finished, conditions, result, reason, text)


def _set_ended(
    stage: str, view: JobView, finished: Object, conditions: Conditions, result: Plan, reason: str, message: str
) -> None:
    status = result.status
    status["stage"] = stage
    status["completionTime"] = finished["lastTransitionTime"]
    starts = [since for pod in view.pods if (since := view.get_start_time(pod))]
    if starts and view.container == child_names.TRAINER:
        status.setdefault("startTime", min(starts))
    for type_ in ("Running", "Succeeded", "Failed"):
        conditions.set(type_, type_ == stage, reason, message)
    if conditions.is_true("Suspended"):
        conditions.set("Suspended", False, reason, message)


def _copy_final_report(message: TerminationMessage, status: Object) -> None:
    if message.progress:
        status["progress"] = message.progress.to_wire()
    if message.parameters:
        status["parameters"] = message.parameters.to_wire()
    if message.tracking is not None:
        status["tracking"] = [tracker.to_wire() for tracker in message.tracking]
