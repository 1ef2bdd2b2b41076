"""What to do about a FineTuneJob: a pure function of what is observed."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from hone_api.finetunejob import FineTuneJob
from hone_api.layout import TRAINER_PORT
from hone_api.reasons import INVALID_SPEC, HoneError
from hone_api.reports import ProgressReport

from hone_operator import children, endings, liveness, podstate, trainer
from hone_operator.attempts import account
from hone_operator.conditions import Conditions
from hone_operator.failures import NOT_COUNTED
from hone_operator.jobview import JobView
from hone_operator.nodes import ClusterFacts
from hone_operator.ownership import conflict, is_leaving
from hone_operator.plan import Apply, Create, Delete, Patch, Plan
from hone_operator.refusals import refused
from hone_operator.resources import CLAIMS, CONFIGMAPS, JOBS, SERVICES, Object, contains, is_controlled_by

TERMINAL = ("Succeeded", "Failed")
CONDITION_TYPES = ("Accepted", "Prepared", "Running", "Suspended", "Succeeded", "Failed")
GONE_SOON_SECONDS = 2.0
LOOK_AGAIN_SECONDS = 20.0
QUEUED = "Queued"
QUEUE_SECONDS = 60.0
QUIET = frozenset({"Accepted", "PodStarting", "TrainerEnded", "Suspending"})


@dataclass
class ObservedFineTuneJob:
    """A FineTuneJob and what there is of its children. `spec` is an error when the object breaks the contract.

    `pods` are those of the present training Job and `prepare_pods` of the preparing one, `strays` pods of earlier ones
    that have not ended yet, `trainers` all that train or trained. `gpu`: name and bytes of the GPU that may train.
    `queue`: what the queue says of why it holds the Job.
    """

    owner: Object
    spec: FineTuneJob | HoneError
    image: str
    config_map: Object | None = None
    claim: Object | None = None
    service: Object | None = None
    job: Object | None = None
    prepare_job: Object | None = None
    pods: list[Object] = field(default_factory=list)
    prepare_pods: list[Object] = field(default_factory=list)
    strays: list[Object] = field(default_factory=list)
    trainers: list[Object] = field(default_factory=list)
    reports: dict[str, ProgressReport] = field(default_factory=dict)
    heard: dict[str, datetime] = field(default_factory=dict)
    facts: ClusterFacts | None = None
    gpu: tuple[str, int] | None = None
    warning: str | None = None
    queue: str | None = None
    refusal: str | None = None

    @property
    def training(self) -> JobView:
        return JobView(children.TRAINER, self.job, self.pods)

    @property
    def preparing(self) -> JobView:
        return JobView(children.PREPARE, self.prepare_job, self.prepare_pods)

    @property
    def children(self) -> list[Object]:
        """What is there of the children that belong to the object."""
        found = (self.job, self.prepare_job, self.config_map, self.service)
        return [child for child in found if child is not None]


def is_terminal(owner: Object) -> bool:
    """Whether the job has its result, which nothing changes any more."""
    return (owner.get("status") or {}).get("stage") in TERMINAL


def plan(observed: ObservedFineTuneJob, now: datetime) -> Plan:
    """Children to make, status to write."""
    owner = observed.owner
    before: Object = owner.get("status") or {}
    if owner["metadata"].get("deletionTimestamp"):
        return Plan(status=before)
    if is_terminal(owner):
        return _after_the_end(observed, now)
    conditions = Conditions(owner, now)
    status: Object = {**before, "observedGeneration": owner["metadata"].get("generation")}
    status.setdefault("stage", "Pending")
    result = Plan(status=status)
    if isinstance(observed.spec, HoneError):
        _refuse(conditions, INVALID_SPEC.name, observed.spec.sentence())
    elif any(is_leaving(child, owner) for child in observed.children):
        result.requeue_after = GONE_SOON_SECONDS
    elif error := conflict(observed.children, owner):
        _refuse(conditions, error.reason.name, error.sentence())
        jobs = [job for job in (observed.job, observed.prepare_job) if job and is_controlled_by(job, owner)]
        result.actions = [_delete(job) for job in jobs]  # they would run with another's manifest
        result.requeue_after = LOOK_AGAIN_SECONDS
    else:
        conditions.set("Accepted", True, "Accepted", "The object keeps the contract.")
        account(status, observed.trainers, children.TRAINER, observed.spec.spec.resources.gpus, now)
        _state(observed, observed.spec, now, conditions, result)
        if status["stage"] not in TERMINAL:
            _jobs(observed, observed.spec, conditions, result)
            _other_children(observed, observed.spec, result)
    status["conditions"] = conditions.to_list(*CONDITION_TYPES)
    result.events = conditions.events("Accepted", "Prepared", "Running", "Suspended", quiet=QUIET)
    return result


def _after_the_end(observed: ObservedFineTuneJob, now: datetime) -> Plan:
    """The status is left as it is; Jobs and pods are removed when their time is over."""
    result = Plan(status=observed.owner["status"])
    if isinstance(observed.spec, HoneError) or "completionTime" not in result.status:
        return result
    seconds = observed.spec.spec.ttl_seconds_after_finished
    jobs = [job for job in (observed.job, observed.prepare_job) if job and is_controlled_by(job, observed.owner)]
    if seconds is None or not jobs:
        return result
    left = podstate.parse_time(result.status["completionTime"]) + timedelta(seconds=seconds) - now
    if left > timedelta(0):
        result.requeue_after = left.total_seconds()
    else:
        result.actions = [_delete(job) for job in jobs if not job["metadata"].get("deletionTimestamp")]
    return result


def _refuse(conditions: Conditions, reason: str, message: str) -> None:
    conditions.set("Accepted", False, reason, message)
    conditions.set("Running", False, reason, message)


def _jobs(observed: ObservedFineTuneJob, job: FineTuneJob, conditions: Conditions, result: Plan) -> None:
    """Whichever Job the job's state asks for, as the spec now says; none while it is suspended."""
    owner, image = observed.owner, observed.image
    if job.spec.suspend:
        views = (observed.training, observed.preparing)
        result.actions += [_delete(view.job) for view in views if view.job and not view.has_ended]
        return
    if result.actions:  # a Job is being removed
        return
    if trainer.prepares_apart(job) and not conditions.holds("Prepared"):
        view, desired = observed.preparing, trainer.prepare_job(owner, job, image, observed.gpu)
    else:
        view, desired = observed.training, trainer.train_job(owner, job, image)
    if view.job is None:
        if not observed.strays:  # the claim has one writer
            result.actions.append(Create(JOBS, desired))
        return
    if view.has_ended:
        return
    if (view.job["metadata"].get("annotations") or {}).get(trainer.MADE_FROM, "") not in ("", trainer.made_from(job)):
        result.actions.append(_delete(view.job))
        return
    # What else of the template could differ can't change: only some fields can be put right.
    fields = trainer.mutable_job_spec(job) | {"parallelism": desired["spec"]["parallelism"]}
    mutable = {"metadata": {"labels": desired["metadata"]["labels"]}, "spec": fields}
    deadline = "activeDeadlineSeconds"
    if not contains(view.job, mutable) or view.job["spec"].get(deadline) != fields[deadline]:
        result.actions.append(Patch(JOBS, view.job["metadata"]["name"], mutable))


def _other_children(observed: ObservedFineTuneJob, job: FineTuneJob, result: Plan) -> None:
    config_map = children.config_map(observed.owner)
    if observed.config_map is None:
        result.actions.append(Create(CONFIGMAPS, config_map))
    elif not contains(observed.config_map, config_map):
        result.actions.append(Apply(CONFIGMAPS, config_map))
    if observed.claim is None and not job.spec.output.claim:
        result.actions.append(Create(CLAIMS, children.claim(observed.owner, job)))
    if job.spec.resources.nodes > 1:
        service = children.service(observed.owner, job)
        if observed.service is None or not contains(observed.service, service):
            result.actions.append(Apply(SERVICES, service))


def _delete(job: Object) -> Delete:
    return Delete(JOBS, job["metadata"]["name"], job["metadata"]["uid"])


def _state(
    observed: ObservedFineTuneJob, job: FineTuneJob, now: datetime, conditions: Conditions, result: Plan
) -> None:
    training, preparing = observed.training, observed.preparing
    if observed.refusal:
        error = refused(observed.refusal)
        conditions.set("Running", False, error.reason.name, error.sentence())
        return
    if trainer.prepares_apart(job) and preparing.condition("Complete"):
        endings.prepared(preparing, conditions, result)
    if finished := training.condition("Complete"):
        if training.success:
            endings.succeeded(observed.owner, job, training, finished, conditions, result)
            return
        _ask_again(training, conditions, result)
    elif finished := training.condition("Failed"):
        endings.failed(training, finished, conditions, result)
        return
    elif finished := preparing.condition("Failed"):
        endings.failed(preparing, finished, conditions, result)
        conditions.set("Prepared", False, *conditions.words_of("Failed"))
        return
    conditions.set("Succeeded", False, "NotFinished", "The artifact is not complete yet.")
    conditions.set("Failed", False, "NotFinished", "No failure has ended the job.")
    if job.spec.suspend or (training.is_suspended and not training.is_about_to_end):
        _suspended(observed, job, conditions, result)
        return
    if conditions.holds("Suspended"):
        words = "The job goes on from its newest checkpoint." if result.status.get("progress") else "The job may begin."
        conditions.set("Suspended", False, "Resumed", words)
    if result.actions:
        return
    if trainer.prepares_apart(job) and not conditions.holds("Prepared"):
        _preparing(observed, now, conditions, result)
    else:
        _training(observed, job, now, conditions, result)


def _ask_again(view: JobView, conditions: Conditions, result: Plan) -> None:
    """The pod with the result is gone. The trainer, started again, finds its complete artifact and reports at once."""
    if view.job is None:
        return
    result.actions = [_delete(view.job)]
    words = "The trainer's pod is gone, and its result with it: it is started again to report the artifact it left."
    conditions.set("Running", False, "ResultLost", words)


def _suspended(observed: ObservedFineTuneJob, job: FineTuneJob, conditions: Conditions, result: Plan) -> None:
    """No pod is wanted: by the user, or by whatever has suspended the Job, such as a queue."""
    ending = [*observed.training.active, *observed.preparing.active, *observed.strays]
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
    """The words of a wait for a queue. What the queue said is kept, since that is gone sooner than the wait is over."""
    words = f"The Job is suspended by a queue or a person, and goes on{where} when they let it."
    if observed.queue:
        return f"{words} {observed.queue.rstrip('.')}."
    if conditions.holds("Suspended") and conditions.words_of("Suspended")[0] == QUEUED:
        result.requeue_after = QUEUE_SECONDS
        return conditions.words_of("Suspended")[1]
    result.requeue_after = GONE_SOON_SECONDS
    return words


def _preparing(observed: ObservedFineTuneJob, now: datetime, conditions: Conditions, result: Plan) -> None:
    view = observed.preparing
    if view.running:
        result.status["stage"] = "Preparing"
        pod = view.running[0]["metadata"]["name"]
        reason, words = "Preparing", f"Pod {pod} downloads, checks and tokenizes. No GPU is held."
    else:
        if not view.is_about_to_end:
            result.status["stage"] = "Pending"
        reason, words = _why_waiting(observed, view, now, result)
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
            result.poll = {uid: f"http://{ip}:{TRAINER_PORT}/progress"}
        _report(observed.reports.get(uid), status)
        if len(view.running) == job.spec.resources.nodes:
            _running(observed, view, lead, now, conditions, result)
            return
    elif not view.is_about_to_end:
        status["stage"] = "Pending"
    conditions.set("Running", False, *_why_waiting(observed, view, now, result))


def _running(
    observed: ObservedFineTuneJob, view: JobView, lead: Object, now: datetime, conditions: Conditions, result: Plan
) -> None:
    """All pods of the trainer run: is it well?"""
    uid = lead["metadata"]["uid"]
    found = liveness.judge(
        lead, observed.reports.get(uid), observed.heard.get(uid), observed.facts, now, liveness.PATIENCE
    )
    error = next((lost for pod in view.running if (lost := liveness.lost(pod, observed.facts))), found.error)
    result.requeue_after = found.look_again
    stopping = next((pod for pod in view.running if "deletionTimestamp" in pod["metadata"]), None)
    names = ", ".join(sorted(pod["metadata"]["name"] for pod in view.running))
    if error:
        conditions.set("Running", True, error.reason.name, error.sentence())
    elif stopping:
        words = f"The trainer in pod {stopping['metadata']['name']} is told to stop, and saves a checkpoint."
        conditions.set("Running", True, "TrainerStopping", words)
    else:
        conditions.set("Running", True, "TrainerRunning", f"The trainer runs in pod {names}.")


def _why_waiting(observed: ObservedFineTuneJob, view: JobView, now: datetime, result: Plan) -> tuple[str, str]:
    """Reason and words for a Job whose pods don't all run."""
    if not view.active and view.is_about_to_end:
        return "TrainerEnded", "The trainer has ended; the Job is about to."
    error = None
    if pod := view.late:
        error = podstate.why_not_running(pod, view.container, facts=observed.facts, warning=observed.warning, now=now)
    elif observed.warning and not view.active:
        error = refused(observed.warning)
    result.requeue_after = LOOK_AGAIN_SECONDS
    if error:
        return error.reason.name, error.sentence()
    if observed.strays:
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


def _report(report: ProgressReport | None, status: Object) -> None:
    if report is None:
        if status.get("stage") in ("Pending", "Suspended"):
            status["stage"] = "Preparing"
        return
    status["stage"] = report.stage
    if report.progress:
        status["progress"] = report.progress.to_wire()
    if report.parameters:
        status["parameters"] = report.parameters.to_wire()
