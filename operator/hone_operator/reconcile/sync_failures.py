"""Failures that keep the children of an object from being as desired, for the condition `Synced`.

In: a failed read or write. Out: a SyncFailure with reason, message and remedy. A refusal is reported at once. Any other
failure, such as a webhook that is down, is reported after REPORTED_AFTER_FAILURES failures in a row: most are over
before that.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from hone_api.layout import FINETUNEJOB_LABEL, INFERENCESERVICE_LABEL, MANAGED_BY_LABEL, MANAGER
from hone_api.reasons import API_FAILING, CHILD_CONTESTED, CHILD_HIDDEN, CHILD_REFUSED, HoneError

from hone_operator.diagnosis.admission import explain_refusal
from hone_operator.diagnosis.invalid_fields import explain_invalid
from hone_operator.kube.client import ApiError
from hone_operator.kube.retention import Unknown
from hone_operator.objects.resources import DEPLOYMENTS, FINETUNEJOBS, Key, Object, is_controlled_by, is_terminal
from hone_operator.reconcile import readiness
from hone_operator.reconcile.conditions import Conditions
from hone_operator.reconcile.plan import Action, Apply, Create, Delete, Plan, get_target_name

SYNCED = "Synced"
# After this many failures in a row, any failure of one child is reported.
REPORTED_AFTER_FAILURES = 3
MAX_MESSAGE_CHARACTERS = 1000
_VERBS = {Create: "create", Apply: "apply", Delete: "delete"}


@dataclass(frozen=True)
class SyncFailure:
    """A child that could not be read or written. `stops_pods`: no pod is created as long as this lasts."""

    error: HoneError
    stops_pods: bool = False


class FailureCounts:
    """How often each write failed in a row, by owner and child."""

    def __init__(self) -> None:
        self._failures: dict[Key, dict[str, int]] = {}

    def count_failures(self, key: Key, names: list[str]) -> dict[str, int]:
        """Count one more failure of each of these names, and reset all others of the object. Return the counts."""
        before = self._failures.pop(key, {})
        counted = {name: before.get(name, 0) + 1 for name in names}
        if counted:
            self._failures[key] = counted
        return counted

    def forget(self, key: Key) -> None:
        """Forget the failures of an object that is gone, or whose writes all succeeded."""
        self._failures.pop(key, None)


def explain_write_failure(action: Action, error: Exception, failures: int) -> SyncFailure | None:
    """Return what to report of a write that failed `failures` times in a row; None when it is too early."""
    what = f"{action.resource.kind} {get_target_name(action)}"
    stops_pods = isinstance(action, Create) or (action.resource == DEPLOYMENTS and isinstance(action, Apply))
    if isinstance(error, ApiError) and error.is_refusal:
        if stops_pods:
            found = explain_refusal(error.message, CHILD_REFUSED)
            return SyncFailure(
                HoneError(found.reason, f"{what}: {found.message}", remedy=found.remedy), stops_pods=True
            )
        if isinstance(action, Delete) and action.replaced_by:
            found = explain_refusal(error.message, CHILD_REFUSED)
            message = f"{what} is kept as it was, since the one that the spec now asks for is refused: {found.message}"
            return SyncFailure(HoneError(found.reason, message, remedy=found.remedy))
        if invalid := explain_invalid(error.message):
            return SyncFailure(HoneError(invalid.reason, f"{what}: {invalid.message}", remedy=invalid.remedy))
        remedy = explain_refusal(error.message, CHILD_REFUSED).remedy
        text = error.message[:MAX_MESSAGE_CHARACTERS]
        refused_act = f"The removal of {what}" if isinstance(action, Delete) else what
        return SyncFailure(
            HoneError(CHILD_REFUSED, f"{refused_act} is refused ({error.status}): {text}", remedy=remedy)
        )
    if failures < REPORTED_AFTER_FAILURES:
        return None
    verb = _VERBS.get(type(action), "patch")
    return SyncFailure(HoneError(API_FAILING, f"Can't {verb} {what}: {describe_error(error)}"), stops_pods=stops_pods)


def explain_read_failure(error: Exception, failures: int) -> SyncFailure | None:
    """Return what to report when the children can't be read for the `failures`th time; None when it is too early."""
    if failures < REPORTED_AFTER_FAILURES:
        return None
    reason = CHILD_REFUSED if isinstance(error, ApiError) and error.is_refusal else API_FAILING
    return SyncFailure(HoneError(reason, f"The children can't be read: {describe_error(error)}"), stops_pods=True)


def explain_contest(child: tuple[str, str], manager: str | None) -> SyncFailure:
    """Return what to report of a child that somebody else changes or deletes each time."""
    who = manager or "somebody else, or by an admission policy or webhook"
    return SyncFailure(
        HoneError(CHILD_CONTESTED, f"{child[0]} {child[1]} is changed or deleted again and again by {who}")
    )


def find_hidden_children(children: Sequence[Object], owner: Object) -> list[SyncFailure]:
    """Return what to report of children that no watch selects, since they lack Hone's label."""
    found = []
    for child in children:
        value = (child["metadata"].get("labels") or {}).get(MANAGED_BY_LABEL)
        if value != MANAGER and is_controlled_by(child, owner):
            what = f"{child['kind']} {child['metadata']['name']}"
            text = f"{what} has {MANAGED_BY_LABEL}={value or ''} instead of {MANAGER}, so Hone can't see how it is"
            found.append(SyncFailure(HoneError(CHILD_HIDDEN, text)))
    return found


def explain_pod_limit(key: Key, owner: Object, unknown: Unknown) -> SyncFailure | None:
    """Return what to report of pods for which the operator has no memory; None for a finished job, which needs none."""
    if not any(unknown) or is_terminal(owner):
        return None
    label = FINETUNEJOB_LABEL if key.resource == FINETUNEJOBS else INFERENCESERVICE_LABEL
    count = f"{sum(unknown)} pods with this {key.resource.kind}'s labels are known in part"
    if unknown.dropped:
        count = f"{unknown.dropped} pods with this {key.resource.kind}'s labels are not known, so nothing is done"
    text = f"{count}: pods with Hone's labels take more memory than the operator has for them, most of it here"
    remedy = (
        f"Delete those that Hone did not make. See: kubectl get pods --namespace {key.namespace} "
        f"--selector {MANAGED_BY_LABEL}={MANAGER},{label}={key.name}"
    )
    return SyncFailure(HoneError(CHILD_HIDDEN, text, remedy=remedy), stops_pods=bool(unknown.dropped))


def plan_failure_report(owner: Object, now: datetime, sync_failures: Sequence[SyncFailure]) -> Plan:
    """Return a plan whose status reports these failures, and is otherwise unchanged: nothing else is known."""
    before: Object = owner.get("status") or {}
    conditions = Conditions(owner, now)
    set_synced(sync_failures, conditions)
    first = sync_failures[0].error
    readiness.set_conditions(conditions, readiness.Health("Reconciling", first.reason.name, first.format_message()))
    own = (SYNCED, *readiness.READINESS_TYPES)
    types = [each["type"] for each in before.get("conditions") or [] if each["type"] not in own]
    status = {**before, "conditions": conditions.to_list(*types, *own)}
    if not is_terminal(owner):
        return Plan(status=status, events=conditions.build_events(SYNCED))
    return Plan(status=before)


def describe_error(error: Exception) -> str:
    """Return a failure's message, without parts that change from try to try."""
    if isinstance(error, ApiError):
        return f"the API server answers {error.status}: {error.message[:MAX_MESSAGE_CHARACTERS]}"
    if isinstance(error, TimeoutError):
        return (
            "the API server does not answer in time (if it answers others, an admission webhook that it asks is slow)"
        )
    return f"the API server does not answer ({type(error).__name__})"


def set_synced(sync_failures: Sequence[SyncFailure], conditions: Conditions) -> None:
    """Set the condition Synced. It exists from the first trouble on."""
    if sync_failures:
        first = sync_failures[0].error
        text = " ".join(dict.fromkeys(f"{each.error.message.rstrip('. ')}." for each in sync_failures))
        conditions.set(SYNCED, False, first.reason.name, f"{text} {first.remedy}")
    elif conditions.is_set(SYNCED):
        conditions.set(SYNCED, True, SYNCED, "All children are as they should be.")
