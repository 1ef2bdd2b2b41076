"""Plan the push of a complete artifact, and report what came of it. Pure.

In: the snapshot of a FineTuneJob that has succeeded, with its pushing Job. Out: the condition Pushed, status.pushes,
and the actions that start the Job, replace it when a destination changes, and repeat it after a failure. A push never
changes the result of the job. Called by plan.py.
"""

from datetime import datetime, timedelta

from hone_api.finetunejobs.spec import FineTuneJob
from hone_api.finetunejobs.status import Push
from hone_api.reasons import NAME_CONFLICT, HoneError

from hone_operator.diagnosis import pod_state
from hone_operator.diagnosis.pod_failure import PodFailure, read_termination_message
from hone_operator.finetunejob import children, sidecars
from hone_operator.finetunejob.push_job import build_push_job
from hone_operator.finetunejob.snapshot import JobView, ObservedFineTuneJob
from hone_operator.finetunejob.waiting import get_recheck_seconds
from hone_operator.objects import timestamps
from hone_operator.objects.drift import APPLIED_ANNOTATION, get_annotation
from hone_operator.objects.resources import JOBS, Object, awaits_push, is_controlled_by
from hone_operator.reconcile.conditions import Conditions
from hone_operator.reconcile.ownership import is_own
from hone_operator.reconcile.plan import Create, Plan, build_delete

PUSHED = "Pushed"
# The reason while a pod pushes, or is about to.
RUNNING = "Pushing"
DELETION_RECHECK_SECONDS = 2.0
CONFLICT_RECHECK_SECONDS = 20.0
CONFIG_MAP_RECHECK_SECONDS = 1.0
# The pause before a failed push is repeated: a quarter of the time since the job succeeded, within these bounds.
SHORTEST_PAUSE, LONGEST_PAUSE = timedelta(minutes=5), timedelta(hours=6)


def announce(conditions: Conditions, result: Plan) -> None:
    """Report that a complete artifact will be pushed, and look again at once, with the snapshot of a push."""
    conditions.set(PUSHED, False, RUNNING, "The artifact is complete, and is about to be pushed.")
    result.requeue_after_seconds = 0.0


def plan_push(
    observed: ObservedFineTuneJob, job: FineTuneJob, now: datetime, conditions: Conditions, result: Plan
) -> None:
    """Add the actions of the push, and write its status and condition."""
    status, view = result.status, observed.pushing
    digest = (status.get("artifact") or {}).get("digest")
    if not job.spec.output.push or not digest:
        status.pop("pushes", None)
        conditions.remove(PUSHED)
        if view.job and is_controlled_by(view.job, observed.owner):
            result.actions.append(build_delete(JOBS, view.job))
        return
    desired = build_push_job(observed.owner, job, observed.image, digest)
    is_current = view.job is not None and is_controlled_by(view.job, observed.owner) and _is_same(view.job, desired)
    pushes = _list_pushes(job, digest, status.get("pushes") or [])
    if is_current:
        _add_results(pushes, view, digest)
    status["pushes"] = [push.to_wire() for push in pushes]
    if all(push.digest for push in pushes):
        where = ", ".join(push.address for push in pushes)
        conditions.set(PUSHED, True, PUSHED, f"The artifact {digest} is complete at {where}.")
        if is_current and sidecars.find_held_pods(view):
            result.actions += sidecars.plan_job_removal(view)
        return
    if not awaits_push(observed.owner):  # a destination was added: the snapshot lacks what a push needs
        announce(conditions, result)
        return
    _plan_job(observed, desired, now, conditions, result, is_current=is_current)
    trouble = next((each.error for each in observed.sync_failures if each.stops_pods), None)
    if trouble and not view.active_pods:
        conditions.set(PUSHED, False, trouble.reason.name, trouble.format_message())


def _is_same(found: Object, desired: Object) -> bool:
    return get_annotation(found, APPLIED_ANNOTATION) == get_annotation(desired, APPLIED_ANNOTATION)


def _list_pushes(job: FineTuneJob, digest: str, before: list[Object]) -> list[Push]:
    """Return what is known of each destination: of another artifact, nothing."""
    found = [Push.model_validate(push) for push in before if push.get("digest") in (None, digest)]
    known = {(push.address, push.endpoint): push for push in found}
    wanted = [Push(address=each.address, endpoint=each.endpoint) for each in job.spec.output.push]
    return [known.get((push.address, push.endpoint)) or push for push in wanted]


def _add_results(pushes: list[Push], view: JobView, digest: str) -> None:
    """Add what the pods of the Job have reported. A Job that is complete has pushed to all destinations."""
    is_complete = view.success_state is not None or view.find_condition("Complete") is not None
    states = [failure.termination_message for failure in view.failures]
    messages = [*states, read_termination_message(view.success_state) if view.success_state else None]
    for message in filter(None, messages):
        for found in message.pushed or []:
            if found.index >= len(pushes):
                continue
            push = pushes[found.index]
            place = Push(address=push.address, endpoint=push.endpoint)
            if found.reason is None:
                pushes[found.index] = place.model_copy(update={"digest": digest, "revision": found.revision})
            elif push.digest is None:
                pushes[found.index] = place.model_copy(update={"reason": found.reason, "message": found.message})
    if is_complete:
        for index, push in enumerate(pushes):
            if push.digest is None:
                pushes[index] = Push(address=push.address, endpoint=push.endpoint, digest=digest)


def _plan_job(
    observed: ObservedFineTuneJob,
    desired: Object,
    now: datetime,
    conditions: Conditions,
    result: Plan,
    *,
    is_current: bool,
) -> None:
    """Start, replace or repeat the Job, and report why the artifact is not pushed yet."""
    view, found = observed.pushing, observed.push_job
    conditions.set(PUSHED, False, RUNNING, "The pushing pod is being made, scheduled or started.")
    if found is None and observed.config_map and not is_own(observed.config_map, observed.owner):
        _set_name_conflict(observed.config_map, conditions, result)
    elif found is None:
        # The pod reads the destinations from the ConfigMap, so the Job is made once the ConfigMap has them.
        config_map = children.build_config_map(observed.owner)
        if actions := children.plan_config_map(observed.config_map, config_map):
            result.actions += actions
            result.requeue_after_seconds = CONFIG_MAP_RECHECK_SECONDS
        else:
            result.actions.append(Create(JOBS, desired))
    elif found["metadata"].get("deletionTimestamp"):
        result.requeue_after_seconds = DELETION_RECHECK_SECONDS
    elif not is_controlled_by(found, observed.owner):
        _set_name_conflict(found, conditions, result)
    elif not is_current:
        result.actions.append(build_delete(JOBS, found))
    elif finished := view.find_condition("Failed"):
        _plan_retry(view, found, finished, now, conditions, result)
    else:
        _set_running(observed, view, now, conditions, result)


def _set_name_conflict(found: Object, conditions: Conditions, result: Plan) -> None:
    """Report that another object has the name of the Job or of the ConfigMap that its pod reads."""
    text = f"{found['kind']} {found['metadata']['name']} exists, and Hone did not make it for this FineTuneJob"
    error = HoneError(NAME_CONFLICT, text)
    conditions.set(PUSHED, False, error.reason.name, error.format_message())
    result.requeue_after_seconds = CONFLICT_RECHECK_SECONDS


def _plan_retry(
    view: JobView, found: Object, finished: Object, now: datetime, conditions: Conditions, result: Plan
) -> None:
    """Report why the push failed, and retry it after a pause: its cause may be fixed by then."""
    cause = view.root_cause or PodFailure("BackoffLimitExceeded", str(finished.get("message", "")), "")
    ended = timestamps.parse_untrusted_time(finished["lastTransitionTime"]) or now
    since = timestamps.parse_untrusted_time(result.status.get("completionTime")) or ended
    at = ended + min(max((ended - since) / 4, SHORTEST_PAUSE), LONGEST_PAUSE)
    if at <= now:
        result.actions.append(build_delete(JOBS, found))
        return
    metadata = found["metadata"]
    again = f"kubectl delete job {metadata['name']} --namespace {metadata['namespace']}"
    when = f"The push is repeated at {timestamps.format_timestamp(at)}; at once: {again}"
    conditions.set(PUSHED, False, cause.reason, f"{cause.message.rstrip('. ')}. {when}")
    result.requeue_after_seconds = (at - now).total_seconds()


def _set_running(
    observed: ObservedFineTuneJob, view: JobView, now: datetime, conditions: Conditions, result: Plan
) -> None:
    """Report how far the pod of a Job is that has not ended."""
    result.actions += sidecars.plan_failed_pod_ends(view)
    before = f" Previous failure: {view.failures[-1].message}" if view.failures else ""
    if view.running_pods:
        name = view.running_pods[0]["metadata"]["name"]
        conditions.set(PUSHED, False, RUNNING, f"Pod {name} pushes the artifact.{before}")
        return
    pod = view.unstarted_pod
    result.requeue_after_seconds = get_recheck_seconds(pod or view.job, now)
    error = (
        pod_state.explain_not_running(
            pod, view.container, cluster=observed.cluster, warning=observed.warning, now=now, scaling=observed.scaling
        )
        if pod
        else None
    )
    if error:
        conditions.set(PUSHED, False, error.reason.name, error.format_message())
    elif before:
        conditions.set(PUSHED, False, RUNNING, f"The push is repeated.{before}")
