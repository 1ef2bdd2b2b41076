"""Plan a pass over a FineTuneJob: a pure function from the snapshot to actions and the new status.

In: ObservedFineTuneJob, from snapshots.py. Out: a Plan. status.py decides how far the job is; this module refuses
objects that break the contract, compares the children with the desired ones (jobs.py, children.py), and removes what a
finished job no longer needs. Next: controller.py carries out the plan.
"""

from collections.abc import Callable
from datetime import datetime, timedelta

from hone_api.finetunejobs.spec import FineTuneJob
from hone_api.reasons import INVALID_SPEC, NAME_CONFLICT, HoneError

from hone_operator.diagnosis.pod_failure import is_rejected
from hone_operator.finetunejob import children, jobs, output_claims
from hone_operator.finetunejob import status as finetunejob_status
from hone_operator.finetunejob.attempts import account
from hone_operator.finetunejob.fingerprints import fingerprint
from hone_operator.finetunejob.replacement_fields import MADE_FROM, are_fields_changed, is_recorded
from hone_operator.finetunejob.snapshot import JobView, ObservedFineTuneJob
from hone_operator.objects import child_names, timestamps
from hone_operator.objects.drift import annotation_of, contains, is_current
from hone_operator.objects.resources import (
    CLAIMS,
    CONFIGMAPS,
    JOBS,
    SERVICES,
    TERMINAL,
    Object,
    is_controlled_by,
    is_terminal,
)
from hone_operator.objects.spec_fields import FIELDS, read_record
from hone_operator.pods import pod_levels, tuning
from hone_operator.pods.pod_spec import owner_reference
from hone_operator.reconcile import readiness
from hone_operator.reconcile.conditions import Conditions
from hone_operator.reconcile.ownership import conflict, explain_leaving, is_foreign_claim, is_leaving, is_orphan, is_own
from hone_operator.reconcile.plan import Apply, Create, Patch, Plan, removal
from hone_operator.reconcile.sync_failures import SYNCED, report

EVENT_TYPES = ("Accepted", "Prepared", "Running", "Suspended", output_claims.CONDITION, SYNCED)
CONDITION_TYPES = (*EVENT_TYPES[:4], "Succeeded", "Failed", *EVENT_TYPES[4:])
GONE_SOON_SECONDS = 2.0
CONFLICT_SECONDS = 20.0
# A Job reports its end moments after its pods ended: only a longer wait is reported.
SETTLING = timedelta(seconds=10)
KEEPS = "The object keeps the contract."
# Up to this many pods that a kubelet rejected don't count against backoffLimit: a node that rejects more is broken.
MOST_REJECTED = 20
# Reasons of conditions that get no event: they are usual and short.
QUIET = frozenset({"Accepted", "PodStarting", "Preparing", "TrainerEnded", "Suspending"})


def plan(observed: ObservedFineTuneJob, now: datetime) -> Plan:
    """Return the plan of one pass over the object."""
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
        _refuse(observed, conditions, INVALID_SPEC.name, observed.spec.sentence())
    elif any(is_leaving(child, owner) for child in observed.children):
        result.requeue_after = GONE_SOON_SECONDS
        if error := explain_leaving(observed.children, owner, now):
            _refuse(observed, conditions, error.reason.name, error.sentence())
            result.requeue_after = CONFLICT_SECONDS
    elif error := conflict(observed.children, owner):
        _refuse(observed, conditions, error.reason.name, error.sentence())
        result.actions = [removal(JOBS, job) for job in _own_jobs(observed)]  # their manifest would be another object's
        result.requeue_after = CONFLICT_SECONDS
    elif error := _claim_conflict(observed, observed.spec, conditions):
        _refuse(observed, conditions, error.reason.name, error.sentence())
        result.requeue_after = CONFLICT_SECONDS
    elif error := _above_level(observed, observed.spec):
        _refuse(observed, conditions, error.reason.name, error.sentence())
    elif others := _jobs_of_another_spec(observed, observed.spec):
        result.actions = [removal(JOBS, job) for job in others]
        result.requeue_after = GONE_SOON_SECONDS
    else:
        conditions.set("Accepted", True, "Accepted", _accepted(observed, observed.spec))
        account(status, observed.trainers, child_names.TRAINER, observed.spec.spec.resources.gpus, now)
        _compare_claim(observed, observed.spec, conditions)
        finetunejob_status.tell(observed, observed.spec, now, conditions, result)
        if status["stage"] not in TERMINAL:
            _compare_children(observed, observed.spec, conditions, result)
            is_known = before.get("observedGeneration") == status["observedGeneration"]
            if is_known and (_settles(observed.training, now) or _settles(observed.preparing, now)):
                return Plan(status=before, actions=result.actions, requeue_after=SETTLING.total_seconds())
        elif (left := _seconds_kept(observed, status, now)) is not None:
            result.requeue_after = max(left, 0)  # no watch reports that time has passed
    report(observed.troubles, conditions)
    _set_health(status, conditions)
    result.events = conditions.events(*EVENT_TYPES, quiet=QUIET)
    return result


def _after_the_end(observed: ObservedFineTuneJob, now: datetime) -> Plan:
    """Return the plan for a finished job: its result stays, and its Jobs and pods are removed after their TTL."""
    owner = observed.owner
    conditions = Conditions(owner, now)
    status: Object = {**owner["status"], "observedGeneration": owner["metadata"].get("generation")}
    result = Plan(status=status)
    report(observed.troubles, conditions)
    _set_health(status, conditions)
    result.events = conditions.events(SYNCED)
    left = _seconds_kept(observed, status, now)
    if left is None:
        return result
    if left > 0:
        result.requeue_after = left
    else:
        jobs = [job for job in _own_jobs(observed) if not job["metadata"].get("deletionTimestamp")]
        result.actions = [removal(JOBS, job) for job in jobs]
    return result


def _own_jobs(observed: ObservedFineTuneJob) -> list[Object]:
    return [job for job in (observed.job, observed.prepare_job) if job and is_controlled_by(job, observed.owner)]


def _seconds_kept(observed: ObservedFineTuneJob, status: Object, now: datetime) -> float | None:
    """Return for how many more seconds the Jobs of a finished object are kept; None where none is to be removed."""
    if isinstance(observed.spec, HoneError) or "completionTime" not in status:
        return None
    seconds, ended = observed.spec.spec.ttl_seconds_after_finished, timestamps.read_time(status["completionTime"])
    if seconds is None or ended is None or not _own_jobs(observed):
        return None
    return (ended + timedelta(seconds=seconds) - now).total_seconds()


def _set_health(status: Object, conditions: Conditions) -> None:
    """Put the conditions into the status, with the three that tools read."""
    readiness.set_conditions(conditions, readiness.judge_job(status["stage"], conditions))
    status["conditions"] = conditions.to_list(*CONDITION_TYPES, *readiness.TYPES)


def _compare_claim(observed: ObservedFineTuneJob, job: FineTuneJob, conditions: Conditions) -> None:
    """Set a condition while the output's claim differs from the object."""
    if error := output_claims.compare(observed.claim, job):
        conditions.set(output_claims.CONDITION, False, error.reason.name, error.sentence())
    elif conditions.is_set(output_claims.CONDITION):
        conditions.set(output_claims.CONDITION, True, "ClaimMatches", "The claim is as spec.output asks for.")


def _settles(view: JobView, now: datetime) -> bool:
    """Return whether the Job is about to report its end."""
    if not view.final_end or view.has_ended or view.active:
        return False
    ended = timestamps.read_time(view.final_end)
    return ended is not None and not timestamps.has_lasted(ended, SETTLING, now)


def _refuse(observed: ObservedFineTuneJob, conditions: Conditions, reason: str, message: str) -> None:
    """Report why the object is not worked on. A trainer that was started before continues to run."""
    job = observed.job
    is_there = job is not None and is_own(job, observed.owner)
    parallelism = ((job or {}).get("spec") or {}).get("parallelism") or 1
    conditions.set("Accepted", False, reason, message)
    conditions.set("Running", is_there and len(observed.training.running) >= parallelism, reason, message)


def _claim_conflict(observed: ObservedFineTuneJob, job: FineTuneJob, conditions: Conditions) -> HoneError | None:
    """Return an error when somebody else's claim has the output's name. A job that already writes to it continues."""
    began = observed.job or observed.prepare_job or conditions.holds("Prepared")
    if job.spec.output.claim or began or not is_foreign_claim(observed.claim, observed.owner):
        return None
    words = f"PersistentVolumeClaim {job.name} exists, and Hone did not make it for a FineTuneJob of this name"
    remedy = (
        f"To write to it, delete the FineTuneJob and apply it with spec.output.claim.name: {job.name}. Otherwise "
        "rename the FineTuneJob."
    )
    return HoneError(NAME_CONFLICT, words, remedy=remedy)


def _above_level(observed: ObservedFineTuneJob, job: FineTuneJob) -> HoneError | None:
    """Return an error when the pods ask for more than is allowed. A trainer made from this very spec continues."""
    found = observed.job
    if found and is_own(found, observed.owner) and is_recorded(found):
        has_token = jobs.has_token(job, child_names.TRAINER)
        if not are_fields_changed(found, observed.owner, job, has_token=has_token):
            return None
    return pod_levels.explain_relaxations(job.spec.pod, observed.level)


def _accepted(observed: ObservedFineTuneJob, job: FineTuneJob) -> str:
    if job.spec.output.claim or not is_foreign_claim(observed.claim, observed.owner):
        return KEEPS
    return f"{KEEPS} PersistentVolumeClaim {job.name} was not made by Hone for this job, and is used as it is."


def _jobs_of_another_spec(observed: ObservedFineTuneJob, job: FineTuneJob) -> list[Object]:
    """Return Jobs without a controller that were made from another spec: their results don't belong to this object."""
    views = (observed.training, observed.preparing)
    orphans = [(view.container, view.job) for view in views if view.job and is_orphan(view.job, observed.owner)]
    if not orphans:
        return []
    wanted, found = children.config_map(observed.owner)["data"], (observed.config_map or {}).get("data")
    return [
        orphan
        for component, orphan in orphans
        if found != wanted
        or not is_recorded(orphan)
        or are_fields_changed(orphan, observed.owner, job, has_token=jobs.has_token(job, component))
    ]


def _compare_children(observed: ObservedFineTuneJob, job: FineTuneJob, conditions: Conditions, result: Plan) -> None:
    """Add the actions for children that are not as desired. Skip this for a state that was compared before."""
    is_prepared = conditions.holds("Prepared")
    if observed.settled and not result.actions and fingerprint(observed, is_prepared=is_prepared) == observed.settled:
        return
    _jobs(observed, job, conditions, result)
    _other_children(observed, job, result)
    if not result.actions:
        result.settled = fingerprint(observed, is_prepared=is_prepared)


def settle(observed: ObservedFineTuneJob, plan: Plan, now: datetime) -> bytes | None:
    """Return the digest of children that the plan has just created, if a pass would find them as desired."""
    if isinstance(observed.spec, HoneError):
        return None
    conditions = Conditions({**observed.owner, "status": plan.status}, now)
    result = Plan(status=plan.status, built=plan.built)
    _compare_children(observed, observed.spec, conditions, result)
    return result.settled


def _built(result: Plan, name: str, build: Callable[[], Object]) -> Object:
    """Return a desired child, which is built once per plan."""
    if name not in result.built:
        result.built[name] = build()
    return result.built[name]


def _jobs(observed: ObservedFineTuneJob, job: FineTuneJob, conditions: Conditions, result: Plan) -> None:
    """Add the actions for the Job that is due, preparing or training; while suspended, remove both."""
    owner, image = observed.owner, observed.image
    if job.spec.suspend:
        views = (observed.training, observed.preparing)
        result.actions += [removal(JOBS, view.job) for view in views if view.job and not view.has_ended]
        return
    if result.actions:  # a Job is being removed
        return
    if jobs.prepares_apart(job) and not conditions.holds("Prepared"):
        view = observed.preparing
        desired = _built(result, view.container, lambda: jobs.prepare_job(owner, job, image, observed.gpu))
    else:
        view = observed.training
        more = tuning.needs_channels(job.spec.resources, job.spec.pod.node_selector, observed.facts)
        desired = _built(
            result,
            view.container,
            lambda: jobs.train_job(owner, job, image, observed.gpu_access, more_channels=more),
        )
    if view.job is None:
        if not observed.strays:  # the claim has one writer
            result.actions.append(Create(JOBS, desired))
        return
    if is_orphan(view.job, owner):
        kept = view.job["metadata"].get("ownerReferences") or []
        adoption = {"metadata": {"ownerReferences": [*kept, owner_reference(owner)]}}
        result.actions.append(Patch(JOBS, view.job["metadata"]["name"], adoption))
        return
    if view.has_ended:
        return
    is_same = annotation_of(view.job, FIELDS) == annotation_of(desired, FIELDS)
    if not is_same and are_fields_changed(view.job, owner, job, has_token=jobs.has_token(job, view.container)):
        result.actions.append(removal(JOBS, view.job, replaced_by=desired))
        return
    if patch := _job_patch(view.job, view.pods, desired, job):
        result.actions.append(Patch(JOBS, view.job["metadata"]["name"], patch))


def _job_patch(found: Object, pods: list[Object], desired: Object, job: FineTuneJob) -> Object | None:
    """Return a patch of a Job's mutable fields that are not as desired; None where all are.

    Its template can't change.
    """
    fields = jobs.mutable_job_spec(job) | {"parallelism": desired["spec"]["parallelism"]}
    # No rule of a podFailurePolicy matches a pod that never ran, so rejected pods are added to the limit.
    fields["backoffLimit"] += min(sum(is_rejected(pod) for pod in pods), MOST_REJECTED)
    wanted = dict(desired["metadata"]["annotations"])
    if read_record(found) is not None or not annotation_of(found, MADE_FROM):
        del wanted[FIELDS]  # the record of what the Job was made from stays, or there is none
    metadata: Object = {"labels": desired["metadata"]["labels"], "annotations": wanted}
    taken_away = jobs.no_longer_passed_on(desired, found)
    deadline = "activeDeadlineSeconds"
    is_right = contains(found, {"metadata": metadata, "spec": fields}) and not any(taken_away.values())
    if is_right and found["spec"].get(deadline) == fields[deadline]:
        return None
    return {"metadata": {kind: metadata[kind] | taken_away[kind] for kind in metadata}, "spec": fields}


def _other_children(observed: ObservedFineTuneJob, job: FineTuneJob, result: Plan) -> None:
    config_map = _built(result, "manifest", lambda: children.config_map(observed.owner))
    if observed.config_map is None:
        result.actions.append(Create(CONFIGMAPS, config_map))
    elif not is_current(observed.config_map, config_map):
        is_fixed = observed.config_map.get("immutable")
        result.actions.append(removal(CONFIGMAPS, observed.config_map) if is_fixed else Apply(CONFIGMAPS, config_map))
    if observed.claim is None and not job.spec.output.claim:
        result.actions.append(Create(CLAIMS, children.claim(observed.owner, job), decides=True))
    if job.spec.resources.nodes > 1:
        service = children.service(observed.owner, job)
        if not is_current(observed.service, service):
            result.actions.append(Apply(SERVICES, service))
