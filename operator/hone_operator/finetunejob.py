"""What to do about a FineTuneJob: a pure function of what is observed."""

from dataclasses import dataclass, field
from datetime import datetime

from hone_api.finetunejob import FineTuneJob
from hone_api.finetunejobstatus import Artifact
from hone_api.layout import TRAINER_PORT, artifact_path
from hone_api.reasons import (
    ARTIFACT_MISSING,
    BACKOFF_LIMIT_EXCEEDED,
    INTERNAL_ERROR,
    INVALID_SPEC,
    USER_MISTAKES,
    HoneError,
)
from hone_api.reports import ProgressReport, TerminationMessage

from hone_operator import liveness, podstate, trainer
from hone_operator.conditions import Conditions
from hone_operator.failures import NOT_COUNTED, last_failure, termination_message
from hone_operator.nodes import ClusterFacts
from hone_operator.ownership import conflict, is_leaving
from hone_operator.plan import Apply, Create, Delete, Patch, Plan
from hone_operator.refusals import refused
from hone_operator.resources import CLAIMS, CONFIGMAPS, JOBS, Object, contains, is_controlled_by

TERMINAL = ("Succeeded", "Failed")
GONE_SOON_SECONDS = 2.0
LOOK_AGAIN_SECONDS = 20.0
QUIET = frozenset({"Accepted", "TrainerEnded"})


@dataclass
class ObservedFineTuneJob:
    """A FineTuneJob and what there is of its children. `spec` is an error when the object breaks the contract.

    `pods` are those of the present Job, `strays` trainers of an earlier one that have not ended yet.
    """

    owner: Object
    spec: FineTuneJob | HoneError
    image: str
    config_map: Object | None = None
    claim: Object | None = None
    job: Object | None = None
    pods: list[Object] = field(default_factory=list)
    strays: list[Object] = field(default_factory=list)
    reports: dict[str, ProgressReport] = field(default_factory=dict)
    heard: dict[str, datetime] = field(default_factory=dict)
    facts: ClusterFacts | None = None
    warning: str | None = None
    refusal: str | None = None


def is_terminal(owner: Object) -> bool:
    """Whether the job has its result, which nothing changes any more."""
    return (owner.get("status") or {}).get("stage") in TERMINAL


def plan(observed: ObservedFineTuneJob, now: datetime) -> Plan:
    """Children to make, status to write. A terminal job is left as it is."""
    owner = observed.owner
    before: Object = owner.get("status") or {}
    if is_terminal(owner) or owner["metadata"].get("deletionTimestamp"):
        return Plan(status=before)
    conditions = Conditions(owner, now)
    status: Object = {**before, "observedGeneration": owner["metadata"].get("generation")}
    status.setdefault("stage", "Pending")
    result = Plan(status=status)
    children = [child for child in (observed.job, observed.config_map) if child is not None]
    if isinstance(observed.spec, HoneError):
        _refuse(conditions, INVALID_SPEC.name, observed.spec.sentence())
    elif any(is_leaving(child, owner) for child in children):
        result.requeue_after = GONE_SOON_SECONDS
    elif error := conflict(children, owner):
        _refuse(conditions, error.reason.name, error.sentence())
        if observed.job and is_controlled_by(observed.job, owner):  # it would run with another's manifest
            result.actions = [
                Delete(JOBS, trainer.job_name(owner["metadata"]["name"]), observed.job["metadata"]["uid"])
            ]
        result.requeue_after = LOOK_AGAIN_SECONDS
    else:
        conditions.set("Accepted", True, "Accepted", "The object keeps the contract.")
        _children(observed, observed.spec, result)
        _progress(observed, observed.spec, now, conditions, result)
    status["conditions"] = conditions.to_list("Accepted", "Running", "Succeeded", "Failed")
    result.events = conditions.events("Accepted", "Running", quiet=QUIET)
    return result


def _refuse(conditions: Conditions, reason: str, message: str) -> None:
    conditions.set("Accepted", False, reason, message)
    conditions.set("Running", False, reason, message)


def _children(observed: ObservedFineTuneJob, job: FineTuneJob, result: Plan) -> None:
    owner = observed.owner
    if observed.job is None:
        if not observed.strays:  # the claim has one writer
            result.actions.append(Create(JOBS, trainer.train_job(owner, job, observed.image)))
    else:
        desired = trainer.train_job(owner, job, observed.image)
        # The Job's template can't change: what could differ is put right field by field.
        mutable = {
            "metadata": {"labels": desired["metadata"]["labels"]},
            "spec": trainer.mutable_job_spec(job),
        }
        if not contains(observed.job, mutable) and not _condition(observed.job, "Complete", "Failed"):
            result.actions.append(Patch(JOBS, trainer.job_name(job.name), mutable))
    config_map = trainer.config_map(owner)
    if observed.config_map is None:
        result.actions.append(Create(CONFIGMAPS, config_map))
    elif not contains(observed.config_map, config_map):
        result.actions.append(Apply(CONFIGMAPS, config_map))
    if observed.claim is None and not job.spec.output.claim:
        result.actions.append(Create(CLAIMS, trainer.claim(owner, job)))


def _progress(
    observed: ObservedFineTuneJob, job: FineTuneJob, now: datetime, conditions: Conditions, result: Plan
) -> None:
    if observed.refusal:
        error = refused(observed.refusal)
        conditions.set("Running", False, error.reason.name, error.sentence())
        return
    if observed.job and (finished := _condition(observed.job, "Complete")):
        _succeeded(observed, job, finished, conditions, result)
    elif observed.job and (finished := _condition(observed.job, "Failed")):
        _failed(observed, finished, conditions, result)
    else:
        _active(observed, job, now, conditions, result)


def _active(
    observed: ObservedFineTuneJob, job: FineTuneJob, now: datetime, conditions: Conditions, result: Plan
) -> None:
    status = result.status
    conditions.set("Succeeded", False, "NotFinished", "The artifact is not complete yet.")
    conditions.set("Failed", False, "NotFinished", "No failure has ended the job.")
    current = podstate.newest(p for p in observed.pods if podstate.phase(p) in ("Pending", "Running"))
    last = last_failure(observed.pods, trainer.CONTAINER)
    since = podstate.running_since(current, trainer.CONTAINER) if current else None
    if since and current and not _terminated(current):
        status.setdefault("startTime", since)
        uid, ip = current["metadata"]["uid"], current["status"].get("podIP")
        if ip:
            result.poll = {uid: f"http://{ip}:{TRAINER_PORT}/progress"}
        _report(observed.reports.get(uid), status)
        _running(observed, current, now, conditions, result)
        return
    if current is None and (_success(observed.pods) or (last and last.exit_code in USER_MISTAKES)):
        conditions.set("Running", False, "TrainerEnded", "The trainer has ended; the Job is about to.")
        return
    status["stage"] = "Pending"
    if current and not since:
        error = podstate.why_not_running(
            current,
            trainer.CONTAINER,
            facts=observed.facts,
            warning=observed.warning,
            now=now,
        )
        result.requeue_after = LOOK_AGAIN_SECONDS
        if error:
            conditions.set("Running", False, error.reason.name, error.sentence())
            return
    elif observed.warning:
        error = refused(observed.warning)
        conditions.set("Running", False, error.reason.name, error.sentence())
        result.requeue_after = LOOK_AGAIN_SECONDS
        return
    if observed.job and (observed.job.get("spec") or {}).get("suspend"):
        conditions.set("Running", False, "JobSuspended", "The Job is suspended; what suspended it must let it go on.")
        return
    if observed.strays:
        words = f"Pod {observed.strays[0]['metadata']['name']} of an earlier Job must end first."
        conditions.set("Running", False, "EarlierTrainerEnding", words)
        return
    if last:
        words = f"The trainer is started anew. Last time: {last.words}"
        conditions.set("Running", False, last.reason if last.reason in NOT_COUNTED else "Retrying", words)
        return
    conditions.set("Running", False, "PodStarting", "The trainer's pod is being made, scheduled or started.")
    result.requeue_after = LOOK_AGAIN_SECONDS


def _running(observed: ObservedFineTuneJob, pod: Object, now: datetime, conditions: Conditions, result: Plan) -> None:
    """The trainer runs: is it well?"""
    uid, name = pod["metadata"]["uid"], pod["metadata"]["name"]
    found = liveness.judge(
        pod, observed.reports.get(uid), observed.heard.get(uid), observed.facts, now, liveness.PATIENCE
    )
    result.requeue_after = found.look_again
    if found.error:
        conditions.set("Running", True, found.error.reason.name, found.error.sentence())
    elif "deletionTimestamp" in pod["metadata"]:
        words = f"The trainer in pod {name} is told to stop, and saves a checkpoint."
        conditions.set("Running", True, "TrainerStopping", words)
    else:
        conditions.set("Running", True, "TrainerRunning", f"The trainer runs in pod {name}.")


def _report(report: ProgressReport | None, status: Object) -> None:
    if report is None:
        if status.get("stage") == "Pending":
            status["stage"] = "Preparing"
        return
    status["stage"] = report.stage
    if report.progress:
        status["progress"] = report.progress.to_wire()
    if report.parameters:
        status["parameters"] = report.parameters.to_wire()


def _succeeded(
    observed: ObservedFineTuneJob, job: FineTuneJob, finished: Object, conditions: Conditions, result: Plan
) -> None:
    state = _success(observed.pods)
    if state is None:
        _ask_again(observed, conditions, result)
        return
    status = result.status
    message = termination_message(state)
    if message is None or message.artifact is None:
        error = HoneError(ARTIFACT_MISSING, "The trainer ended as if it had succeeded, and reported no artifact")
        _end(observed, "Failed", finished, conditions, result, error.reason.name, error.sentence())
        return
    summary = message.artifact
    artifact = Artifact(
        kind=summary.kind,
        claim=trainer.output_claim(job),
        path=artifact_path(observed.owner["metadata"]["namespace"], job.name),
        digest=summary.digest,
        base_model=summary.base_model,
        base_revision=summary.base_revision,
    )
    _final(message, status)
    status["artifact"] = artifact.to_wire()
    status["metrics"] = message.metrics
    words = f"The artifact {artifact.digest} is complete on claim {artifact.claim}, folder {artifact.path}."
    _end(observed, "Succeeded", finished, conditions, result, "Succeeded", words)


def _ask_again(observed: ObservedFineTuneJob, conditions: Conditions, result: Plan) -> None:
    """The pod with the result is gone. The trainer, started again, finds its complete artifact and reports at once."""
    job = observed.job
    if job is None:
        return
    result.actions = [_delete(job)]
    words = "The trainer's pod is gone, and its result with it: it is started again to report the artifact it left."
    conditions.set("Running", False, "ResultLost", words)


def _delete(job: Object) -> Delete:
    return Delete(JOBS, job["metadata"]["name"], job["metadata"]["uid"])


def _failed(observed: ObservedFineTuneJob, finished: Object, conditions: Conditions, result: Plan) -> None:
    status = result.status
    last = last_failure(observed.pods, trainer.CONTAINER)
    if last:
        reason, words = last.reason, last.words
        if last.message:
            _final(last.message, status)
    else:
        exceeded = finished.get("reason") == BACKOFF_LIMIT_EXCEEDED.name
        error = HoneError(BACKOFF_LIMIT_EXCEEDED if exceeded else INTERNAL_ERROR, str(finished.get("message", "")))
        reason, words = error.reason.name, error.sentence()
    if finished.get("reason") == BACKOFF_LIMIT_EXCEEDED.name and last:
        attempts = (observed.job or {}).get("status", {}).get("failed", 0)
        words = f"{words} ({BACKOFF_LIMIT_EXCEEDED.name}: {attempts} trainers failed.)"
    _end(observed, "Failed", finished, conditions, result, reason, words)


def _end(
    observed: ObservedFineTuneJob,
    stage: str,
    finished: Object,
    conditions: Conditions,
    result: Plan,
    reason: str,
    words: str,
) -> None:
    """The job has its result; `finished` is the Job's condition that says since when."""
    status = result.status
    status["stage"] = stage
    status["completionTime"] = finished["lastTransitionTime"]
    starts = [since for pod in observed.pods if (since := podstate.running_since(pod, trainer.CONTAINER))]
    if starts:
        status.setdefault("startTime", min(starts))
    for type_ in ("Running", "Succeeded", "Failed"):
        conditions.set(type_, type_ == stage, reason, words)


def _final(message: TerminationMessage, status: Object) -> None:
    if message.progress:
        status["progress"] = message.progress.to_wire()
    if message.parameters:
        status["parameters"] = message.parameters.to_wire()


def _terminated(pod: Object) -> Object | None:
    return podstate.terminated(pod, trainer.CONTAINER)


def _success(pods: list[Object]) -> Object | None:
    """The `terminated` state of the trainer that succeeded."""
    return next((state for pod in pods if (state := _terminated(pod)) and state["exitCode"] == 0), None)


def _condition(job: Object, *types: str) -> Object | None:
    conditions = (job.get("status") or {}).get("conditions") or []
    return next((c for c in conditions if c["type"] in types and c["status"] == "True"), None)
