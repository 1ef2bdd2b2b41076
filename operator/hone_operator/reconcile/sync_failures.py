"""Failures that keep the children of an object from being as desired, for the condition `Synced`.

In: a failed read or write. Out: a Trouble with reason, message and remedy. A refusal is reported at once. Any other
failure, such as a webhook that is down, is reported after TRIES failures in a row: most are over before that.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from hone_api.layout import FINETUNEJOB_LABEL, INFERENCESERVICE_LABEL, MANAGED_BY_LABEL, MANAGER
from hone_api.reasons import API_FAILING, CHILD_CONTESTED, CHILD_HIDDEN, CHILD_REFUSED, HoneError

from hone_operator.diagnosis.admission import refused
from hone_operator.diagnosis.invalid_fields import explain_invalid
from hone_operator.kube.client import ApiError
from hone_operator.kube.retention import Unknown
from hone_operator.objects.resources import DEPLOYMENTS, FINETUNEJOBS, Key, Object, is_controlled_by, is_terminal
from hone_operator.reconcile import readiness
from hone_operator.reconcile.conditions import Conditions
from hone_operator.reconcile.plan import Action, Apply, Create, Delete, Plan, name_of

SYNCED = "Synced"
# After this many failures in a row, any failure of one child is reported.
TRIES = 3
LONGEST_WORDS = 1000
_VERBS = {Create: "create", Apply: "apply", Delete: "delete"}


@dataclass(frozen=True)
class Trouble:
    """A child that could not be read or written. `stops_pods`: no pod is created as long as this lasts."""

    error: HoneError
    stops_pods: bool = False


class Troubles:
    """How often each write failed in a row, by owner and child."""

    def __init__(self) -> None:
        self._failures: dict[Key, dict[str, int]] = {}

    def count(self, key: Key, names: list[str]) -> dict[str, int]:
        """Count one more failure of each of these names, and reset all others of the object. Return the counts."""
        before = self._failures.pop(key, {})
        counted = {name: before.get(name, 0) + 1 for name in names}
        if counted:
            self._failures[key] = counted
        return counted

    def forget(self, key: Key) -> None:
        """Forget the failures of an object that is gone, or whose writes all succeeded."""
        self._failures.pop(key, None)


def failed(action: Action, error: Exception, failures: int) -> Trouble | None:
    """Return what to report of a write that failed `failures` times in a row; None when it is too early."""
    what = f"{action.resource.kind} {name_of(action)}"
    stops_pods = isinstance(action, Create) or (action.resource == DEPLOYMENTS and isinstance(action, Apply))
    if isinstance(error, ApiError) and error.is_refusal:
        if stops_pods:
            found = refused(error.message, CHILD_REFUSED)
            return Trouble(HoneError(found.reason, f"{what}: {found.message}", remedy=found.remedy), stops_pods=True)
        if isinstance(action, Delete) and action.replaced_by:
            found = refused(error.message, CHILD_REFUSED)
            kept = f"{what} is kept as it was, since the one that the spec now asks for is refused: {found.message}"
            return Trouble(HoneError(found.reason, kept, remedy=found.remedy))
        if invalid := explain_invalid(error.message):
            return Trouble(HoneError(invalid.reason, f"{what}: {invalid.message}", remedy=invalid.remedy))
        remedy = refused(error.message, CHILD_REFUSED).remedy
        words = error.message[:LONGEST_WORDS]
        refused_act = f"The removal of {what}" if isinstance(action, Delete) else what
        return Trouble(HoneError(CHILD_REFUSED, f"{refused_act} is refused ({error.status}): {words}", remedy=remedy))
    if failures < TRIES:
        return None
    verb = _VERBS.get(type(action), "patch")
    return Trouble(HoneError(API_FAILING, f"Can't {verb} {what}: {describe(error)}"), stops_pods=stops_pods)


def unread(error: Exception, failures: int) -> Trouble | None:
    """Return what to report when the children can't be read for the `failures`th time; None when it is too early."""
    if failures < TRIES:
        return None
    reason = CHILD_REFUSED if isinstance(error, ApiError) and error.is_refusal else API_FAILING
    return Trouble(HoneError(reason, f"The children can't be read: {describe(error)}"), stops_pods=True)


def contested(child: tuple[str, str], manager: str | None) -> Trouble:
    """Return what to report of a child that somebody else changes or deletes each time."""
    who = manager or "somebody else, or by an admission policy or webhook"
    return Trouble(HoneError(CHILD_CONTESTED, f"{child[0]} {child[1]} is changed or deleted again and again by {who}"))


def hidden(children: Sequence[Object], owner: Object) -> list[Trouble]:
    """Return what to report of children that no watch selects, since they lack Hone's label."""
    found = []
    for child in children:
        value = (child["metadata"].get("labels") or {}).get(MANAGED_BY_LABEL)
        if value != MANAGER and is_controlled_by(child, owner):
            what = f"{child['kind']} {child['metadata']['name']}"
            words = f"{what} has {MANAGED_BY_LABEL}={value or ''} instead of {MANAGER}, so Hone can't see how it is"
            found.append(Trouble(HoneError(CHILD_HIDDEN, words)))
    return found


def crowded(key: Key, owner: Object, unknown: Unknown) -> Trouble | None:
    """Return what to report of pods for which the operator has no memory; None for a finished job, which needs none."""
    if not any(unknown) or is_terminal(owner):
        return None
    label = FINETUNEJOB_LABEL if key.resource == FINETUNEJOBS else INFERENCESERVICE_LABEL
    count = f"{sum(unknown)} pods with this {key.resource.kind}'s labels are known in part"
    if unknown.dropped:
        count = f"{unknown.dropped} pods with this {key.resource.kind}'s labels are not known, so nothing is done"
    words = f"{count}: pods with Hone's labels take more memory than the operator has for them, most of it here"
    remedy = (
        f"Delete those that Hone did not make. See: kubectl get pods --namespace {key.namespace} "
        f"--selector {MANAGED_BY_LABEL}={MANAGER},{label}={key.name}"
    )
    return Trouble(HoneError(CHILD_HIDDEN, words, remedy=remedy), stops_pods=bool(unknown.dropped))


def troubles_alone(owner: Object, now: datetime, troubles: Sequence[Trouble]) -> Plan:
    """Return a plan whose status reports these troubles, and is otherwise unchanged: nothing else is known."""
    before: Object = owner.get("status") or {}
    conditions = Conditions(owner, now)
    report(troubles, conditions)
    first = troubles[0].error
    readiness.set_conditions(conditions, readiness.Health("Reconciling", first.reason.name, first.sentence()))
    own = (SYNCED, *readiness.TYPES)
    types = [each["type"] for each in before.get("conditions") or [] if each["type"] not in own]
    status = {**before, "conditions": conditions.to_list(*types, *own)}
    if not is_terminal(owner):
        return Plan(status=status, events=conditions.events(SYNCED))
    return Plan(status=before)


def describe(error: Exception) -> str:
    """Return a failure's message, without parts that change from try to try."""
    if isinstance(error, ApiError):
        return f"the API server answers {error.status}: {error.message[:LONGEST_WORDS]}"
    if isinstance(error, TimeoutError):
        return (
            "the API server does not answer in time (if it answers others, an admission webhook that it asks is slow)"
        )
    return f"the API server does not answer ({type(error).__name__})"


def report(troubles: Sequence[Trouble], conditions: Conditions) -> None:
    """Set the condition Synced. It exists from the first trouble on."""
    if troubles:
        first = troubles[0].error
        words = " ".join(dict.fromkeys(f"{each.error.message.rstrip('. ')}." for each in troubles))
        conditions.set(SYNCED, False, first.reason.name, f"{words} {first.remedy}")
    elif conditions.is_set(SYNCED):
        conditions.set(SYNCED, True, SYNCED, "All children are as they should be.")
