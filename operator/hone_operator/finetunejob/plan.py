"""Plan a pass over a FineTuneJob: a pure function from the snapshot to actions and the new status.

In: ObservedFineTuneJob, from snapshots/reader.py. Out: a Plan. status.py decides how far the job is; this module
refuses objects that break the contract, compares the children with the desired ones (jobs.py, children.py), and removes
what a finished job no longer needs. Next: controller.py carries out the plan.
"""

from collections.abc import Callable
from datetime import datetime, timedelta

from hone_api.finetunejobs.spec import FineTuneJob
from hone_api.reasons import INVALID_SPEC, NAME_CONFLICT, HoneError

from hone_operator.diagnosis.pod_failure import is_rejected
from hone_operator.finetunejob import children, jobs, output_claims, pushing
from hone_operator.finetunejob import status as finetunejob_status
from hone_operator.finetunejob.attempts import update_attempts
from hone_operator.finetunejob.fingerprints import compute_fingerprint
from hone_operator.finetunejob.replacement_fields import MADE_FROM_ANNOTATION, are_fields_changed, is_recorded
from hone_operator.finetunejob.snapshot import JobView, ObservedFineTuneJob
from hone_operator.objects import child_names, timestamps
from hone_operator.objects.drift import contains_fields, get_annotation, is_as_desired
from hone_operator.objects.resources import (
    CLAIMS,
    JOBS,
    SERVICES,
    TERMINAL_STAGES,
    Object,
    awaits_push,
    is_controlled_by,
    is_terminal,
)
from hone_operator.objects.spec_fields import FIELDS_ANNOTATION, read_field_record
from hone_operator.pods import pod_levels, tuning
from hone_operator.pods.pod_spec import build_owner_reference
from hone_operator.reconcile import readiness
from hone_operator.reconcile.conditions import Conditions
from hone_operator.reconcile.ownership import (
    explain_leaving,
    explain_name_conflict,
    is_foreign_claim,
    is_leaving,
    is_orphan,
    is_own,
)
from hone_operator.reconcile.plan import Apply, Create, Patch, Plan, build_delete
from hone_operator.reconcile.sync_failures import SYNCED, set_synced

EVENT_TYPES = ("Accepted", "Prepared", "Running", "Suspended", output_claims.CLAIM_CONDITION, SYNCED, pushing.PUSHED)
CONDITION_TYPES = (*EVENT_TYPES[:4], "Succeeded", "Failed", *EVENT_TYPES[4:])
DELETION_RECHECK_SECONDS = 2.0
CONFLICT_RECHECK_SECONDS = 20.0
# A Job reports its end moments after its pods ended: only a longer wait is reported.
SETTLING_TIME = timedelta(seconds=10)
ACCEPTED_MESSAGE = "The object keeps the contract."
# Up to this many pods that a kubelet rejected don't count against backoffLimit: a node that rejects more is broken.
MAX_REJECTED_PODS = 20
# Reasons of conditions that get no event: they are usual and short.
QUIET_REASONS = frozenset({"Accepted", "PodStarting", "Preparing", "TrainerEnded", "Suspending", pushing.RUNNING})


def plan_finetunejob(observed: ObservedFineTuneJob, now: datetime) -> Plan:
    """Return the plan of one pass over the object."""
    owner = observed.owner
    before: Object = owner.get("status") or {}
    if owner["metadata"].get("deletionTimestamp"):
        return Plan(status=before)
    if is_terminal(owner):
        return _plan_finished(observed, now)
    conditions = Conditions(owner, now)
    status: Object = {**before, "observedGeneration": owner["metadata"].get("generation")}
    status.setdefault("stage", "Pending")
    result = Plan(status=status)
    if isinstance(observed.spec, HoneError):
        _set_refused(observed, conditions, INVALID_SPEC.name, observed.spec.format_message())
    elif any(is_leaving(child, owner) for child in observed.children):
        result.requeue_after_seconds = DELETION_RECHECK_SECONDS
        if error := explain_leaving(observed.children, owner, now):
            _set_refused(observed, conditions, error.reason.name, error.format_message())
            result.requeue_after_seconds = CONFLICT_RECHECK_SECONDS
    elif error := explain_name_conflict(observed.children, owner):
        _set_refused(observed, conditions, error.reason.name, error.format_message())
        result.actions = [
            build_delete(JOBS, job) for job in _list_own_jobs(observed)
        ]  # their manifest would be another object's
        result.requeue_after_seconds = CONFLICT_RECHECK_SECONDS
    elif error := _explain_claim_conflict(observed, observed.spec, conditions):
        _set_refused(observed, conditions, error.reason.name, error.format_message())
        result.requeue_after_seconds = CONFLICT_RECHECK_SECONDS
    elif error := _explain_pod_level(observed, observed.spec):
        _set_refused(observed, conditions, error.reason.name, error.format_message())
    elif others := _list_jobs_of_another_spec(observed, observed.spec):
        result.actions = [build_delete(JOBS, job) for job in others]
        result.requeue_after_seconds = DELETION_RECHECK_SECONDS
    else:
        conditions.set("Accepted", True, "Accepted", _describe_acceptance(observed, observed.spec))
        update_attempts(status, observed.trainer_pods, child_names.TRAINER, observed.spec.spec.resources.gpus, now)
        _set_claim_condition(observed, observed.spec, conditions)
        finetunejob_status.update_status(observed, observed.spec, now, conditions, result)
        if status["stage"] not in TERMINAL_STAGES:
            _plan_children(observed, observed.spec, conditions, result)
            is_known = before.get("observedGeneration") == status["observedGeneration"]
            if is_known and (_is_settling(observed.training, now) or _is_settling(observed.preparing, now)):
                return Plan(status=before, actions=result.actions, requeue_after_seconds=SETTLING_TIME.total_seconds())
        elif (left := _get_seconds_until_removal(observed, status, now)) is not None:
            result.requeue_after_seconds = max(left, 0)  # no watch reports that time has passed
        if awaits_push({**owner, "status": status}):
            pushing.announce(conditions, result)
    set_synced(observed.sync_failures, conditions)
    _set_health(status, conditions)
    result.events = conditions.build_events(*EVENT_TYPES, quiet=QUIET_REASONS)
    return result


def _plan_finished(observed: ObservedFineTuneJob, now: datetime) -> Plan:
    """Return the plan for a finished job: its result stays and is pushed; Jobs and pods go after their TTL."""
    owner = observed.owner
    conditions = Conditions(owner, now)
    status: Object = {**owner["status"], "observedGeneration": owner["metadata"].get("generation")}
    result = Plan(status=status)
    if isinstance(observed.spec, FineTuneJob) and status["stage"] == "Succeeded":
        pushing.plan_push(observed, observed.spec, now, conditions, result)
    set_synced(observed.sync_failures, conditions)
    _set_health(status, conditions)
    result.events = conditions.build_events(SYNCED, pushing.PUSHED, quiet=QUIET_REASONS)
    left = _get_seconds_until_removal(observed, status, now)
    if left is None:
        return result
    if left > 0:
        waits = [left] if result.requeue_after_seconds is None else [left, result.requeue_after_seconds]
        result.requeue_after_seconds = min(waits)
    else:
        is_pushing = conditions.is_set(pushing.PUSHED) and not conditions.is_true(pushing.PUSHED)
        ended = [job for job in _list_own_jobs(observed) if not (is_pushing and job is observed.push_job)]
        result.actions += [build_delete(JOBS, job) for job in ended if not job["metadata"].get("deletionTimestamp")]
    return result


def _list_own_jobs(observed: ObservedFineTuneJob) -> list[Object]:
    found = (observed.job, observed.prepare_job, observed.push_job)
    return [job for job in found if job and is_controlled_by(job, observed.owner)]


def _get_seconds_until_removal(observed: ObservedFineTuneJob, status: Object, now: datetime) -> float | None:
    """Return for how many more seconds the Jobs of a finished object are kept; None where none is to be removed."""
    if isinstance(observed.spec, HoneError) or "completionTime" not in status:
        return None
    seconds, ended = (
        observed.spec.spec.ttl_seconds_after_finished,
        timestamps.parse_untrusted_time(status["completionTime"]),
    )
    if seconds is None or ended is None or not _list_own_jobs(observed):
        return None
    return (ended + timedelta(seconds=seconds) - now).total_seconds()


def _set_health(status: Object, conditions: Conditions) -> None:
    """Put the conditions into the status, with the three that tools read."""
    readiness.set_conditions(conditions, readiness.judge_job(status["stage"], conditions))
    status["conditions"] = conditions.to_list(*CONDITION_TYPES, *readiness.READINESS_TYPES)


def _set_claim_condition(observed: ObservedFineTuneJob, job: FineTuneJob, conditions: Conditions) -> None:
    """Set a condition while the output's claim differs from the object."""
    if error := output_claims.compare_claim(observed.claim, job):
        conditions.set(output_claims.CLAIM_CONDITION, False, error.reason.name, error.format_message())
    elif conditions.is_set(output_claims.CLAIM_CONDITION):
        conditions.set(output_claims.CLAIM_CONDITION, True, "ClaimMatches", "The claim is as spec.output asks for.")


def _is_settling(view: JobView, now: datetime) -> bool:
    """Return whether the Job is about to report its end."""
    if not view.final_end or view.has_ended or view.active_pods:
        return False
    ended = timestamps.parse_untrusted_time(view.final_end)
    return ended is not None and not timestamps.has_lasted(ended, SETTLING_TIME, now)


def _set_refused(observed: ObservedFineTuneJob, conditions: Conditions, reason: str, message: str) -> None:
    """Report why the object is not worked on. A trainer that was started before continues to run."""
    job = observed.job
    is_there = job is not None and is_own(job, observed.owner)
    parallelism = ((job or {}).get("spec") or {}).get("parallelism") or 1
    conditions.set("Accepted", False, reason, message)
    conditions.set("Running", is_there and len(observed.training.running_pods) >= parallelism, reason, message)


def _explain_claim_conflict(
    observed: ObservedFineTuneJob, job: FineTuneJob, conditions: Conditions
) -> HoneError | None:
    """Return an error when somebody else's claim has the output's name. A job that already writes to it continues."""
    began = observed.job or observed.prepare_job or conditions.is_true("Prepared")
    if job.spec.output.claim or began or not is_foreign_claim(observed.claim, observed.owner):
        return None
    text = f"PersistentVolumeClaim {job.name} exists, and Hone did not make it for a FineTuneJob of this name"
    remedy = (
        f"To write to it, delete the FineTuneJob and apply it with spec.output.claim.name: {job.name}. Otherwise "
        "rename the FineTuneJob."
    )
    return HoneError(NAME_CONFLICT, text, remedy=remedy)


def _explain_pod_level(observed: ObservedFineTuneJob, job: FineTuneJob) -> HoneError | None:
    """Return an error when the pods ask for more than is allowed. A trainer made from this very spec continues."""
    found = observed.job
    if found and is_own(found, observed.owner) and is_recorded(found):
        has_token = jobs.reads_token(job, child_names.TRAINER)
        if not are_fields_changed(found, observed.owner, job, has_token=has_token):
            return None
    return pod_levels.explain_relaxations(job.spec.pod, observed.pod_level)


def _describe_acceptance(observed: ObservedFineTuneJob, job: FineTuneJob) -> str:
    if job.spec.output.claim or not is_foreign_claim(observed.claim, observed.owner):
        return ACCEPTED_MESSAGE
    return (
        f"{ACCEPTED_MESSAGE} PersistentVolumeClaim {job.name} was not made by Hone for this job, and is used as it is."
    )


def _list_jobs_of_another_spec(observed: ObservedFineTuneJob, job: FineTuneJob) -> list[Object]:
    """Return Jobs without a controller that were made from another spec: their results don't belong to this object."""
    views = (observed.training, observed.preparing)
    orphans = [(view.container, view.job) for view in views if view.job and is_orphan(view.job, observed.owner)]
    if not orphans:
        return []
    wanted, found = children.build_config_map(observed.owner)["data"], (observed.config_map or {}).get("data")
    return [
        orphan
        for component, orphan in orphans
        if found != wanted
        or not is_recorded(orphan)
        or are_fields_changed(orphan, observed.owner, job, has_token=jobs.reads_token(job, component))
    ]


def _plan_children(observed: ObservedFineTuneJob, job: FineTuneJob, conditions: Conditions, result: Plan) -> None:
    """Add the actions for children that are not as desired. Skip this for a state that was compared before."""
    is_prepared = conditions.is_true("Prepared")
    if (
        observed.settled_digest
        and not result.actions
        and compute_fingerprint(observed, is_prepared=is_prepared) == observed.settled_digest
    ):
        return
    _plan_jobs(observed, job, conditions, result)
    _plan_other_children(observed, job, result)
    if not result.actions:
        result.settled_digest = compute_fingerprint(observed, is_prepared=is_prepared)


def compute_settled_digest(observed: ObservedFineTuneJob, plan: Plan, now: datetime) -> bytes | None:
    """Return the digest of children that the plan has just created, if a pass would find them as desired."""
    if isinstance(observed.spec, HoneError) or is_terminal(observed.owner):
        return None
    conditions = Conditions({**observed.owner, "status": plan.status}, now)
    result = Plan(status=plan.status, desired_children=plan.desired_children)
    _plan_children(observed, observed.spec, conditions, result)
    return result.settled_digest


def _build_once(result: Plan, name: str, build: Callable[[], Object]) -> Object:
    """Return a desired child, which is built once per plan."""
    if name not in result.desired_children:
        result.desired_children[name] = build()
    return result.desired_children[name]


def _plan_jobs(observed: ObservedFineTuneJob, job: FineTuneJob, conditions: Conditions, result: Plan) -> None:
    """Add the actions for the Job that is due, preparing or training; while suspended, remove both."""
    owner, image = observed.owner, observed.image
    if job.spec.suspend:
        views = (observed.training, observed.preparing)
        result.actions += [build_delete(JOBS, view.job) for view in views if view.job and not view.has_ended]
        return
    if result.actions:  # a Job is being removed
        return
    if jobs.has_prepare_job(job) and not conditions.is_true("Prepared"):
        view = observed.preparing
        desired = _build_once(result, view.container, lambda: jobs.build_prepare_job(owner, job, image, observed.gpu))
    else:
        view = observed.training
        more = tuning.needs_more_channels(job.spec.resources, job.spec.pod.node_selector, observed.cluster)
        desired = _build_once(
            result,
            view.container,
            lambda: jobs.build_train_job(owner, job, image, observed.gpu_access, more_channels=more),
        )
    if view.job is None:
        if _has_old_manifest(observed, result):
            result.requeue_after_seconds = pushing.CONFIG_MAP_RECHECK_SECONDS
        elif not observed.stale_pods:  # the claim has one writer
            result.actions.append(Create(JOBS, desired))
        return
    if is_orphan(view.job, owner):
        kept = view.job["metadata"].get("ownerReferences") or []
        adoption = {"metadata": {"ownerReferences": [*kept, build_owner_reference(owner)]}}
        result.actions.append(Patch(JOBS, view.job["metadata"]["name"], adoption))
        return
    if view.has_ended:
        return
    is_same = get_annotation(view.job, FIELDS_ANNOTATION) == get_annotation(desired, FIELDS_ANNOTATION)
    if not is_same and are_fields_changed(view.job, owner, job, has_token=jobs.reads_token(job, view.container)):
        result.actions.append(build_delete(JOBS, view.job, replaced_by=desired))
        return
    if patch := _build_job_patch(view.job, view.pods, desired, job):
        result.actions.append(Patch(JOBS, view.job["metadata"]["name"], patch))


def _has_old_manifest(observed: ObservedFineTuneJob, result: Plan) -> bool:
    """Return whether the ConfigMap has the manifest of another spec, which a new pod must not read."""
    if observed.config_map is None:
        return False
    wanted = _build_once(result, "manifest", lambda: children.build_config_map(observed.owner))
    return bool(observed.config_map.get("data") != wanted["data"])


def _build_job_patch(found: Object, pods: list[Object], desired: Object, job: FineTuneJob) -> Object | None:
    """Return a patch of a Job's mutable fields that are not as desired; None where all are.

    Its template can't change.
    """
    fields = jobs.build_mutable_spec(job) | {"parallelism": desired["spec"]["parallelism"]}
    # No rule of a podFailurePolicy matches a pod that never ran, so rejected pods are added to the limit.
    fields["backoffLimit"] += min(sum(is_rejected(pod) for pod in pods), MAX_REJECTED_PODS)
    wanted = dict(desired["metadata"]["annotations"])
    if read_field_record(found) is not None or not get_annotation(found, MADE_FROM_ANNOTATION):
        del wanted[FIELDS_ANNOTATION]  # the record of what the Job was made from stays, or there is none
    metadata: Object = {"labels": desired["metadata"]["labels"], "annotations": wanted}
    taken_away = jobs.build_passed_on_removal(desired, found)
    deadline = "activeDeadlineSeconds"
    is_right = contains_fields(found, {"metadata": metadata, "spec": fields}) and not any(taken_away.values())
    if is_right and found["spec"].get(deadline) == fields[deadline]:
        return None
    return {"metadata": {kind: metadata[kind] | taken_away[kind] for kind in metadata}, "spec": fields}


def _plan_other_children(observed: ObservedFineTuneJob, job: FineTuneJob, result: Plan) -> None:
    config_map = _build_once(result, "manifest", lambda: children.build_config_map(observed.owner))
    result.actions += children.plan_config_map(observed.config_map, config_map)
    if observed.claim is None and not job.spec.output.claim:
        result.actions.append(Create(CLAIMS, children.build_claim(observed.owner, job), blocks_others=True))
    if job.spec.resources.nodes > 1:
        service = children.build_service(observed.owner, job)
        if not is_as_desired(observed.service, service):
            result.actions.append(Apply(SERVICES, service))
