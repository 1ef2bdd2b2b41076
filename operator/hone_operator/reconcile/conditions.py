"""Conditions by the Kubernetes API conventions, and the events of their transitions.

In: the conditions of an object's status, and what a pass sets. Out: the new list, and one event for each change.
"""

from datetime import datetime

from hone_api.reasons import CATALOGUE

from hone_operator.objects.resources import Object
from hone_operator.objects.texts import MAX_CONDITION_BYTES, MAX_EVENT_BYTES, truncate_text
from hone_operator.objects.timestamps import format_timestamp
from hone_operator.reconcile.plan import Event


class Conditions:
    """The conditions of one object, before and after a pass."""

    def __init__(self, owner: Object, now: datetime) -> None:
        self._generation = owner["metadata"].get("generation")
        self._now = format_timestamp(now)
        self._before = {c["type"]: c for c in (owner.get("status") or {}).get("conditions") or []}
        self._after = dict(self._before)
        self._set_in_this_pass: set[str] = set()

    def set(self, type_: str, status: bool, reason: str, message: str) -> None:
        """Set a condition. Its `lastTransitionTime` changes only when its status does."""
        text = "True" if status else "False"
        before = self._before.get(type_)
        since = before["lastTransitionTime"] if before and before["status"] == text else self._now
        self._set_in_this_pass.add(type_)
        self._after[type_] = {
            "type": type_,
            "status": text,
            "reason": reason,
            "message": truncate_text(message, MAX_CONDITION_BYTES),
            "lastTransitionTime": since,
            **({"observedGeneration": self._generation} if self._generation is not None else {}),
        }

    def keep_previous(self, type_: str) -> None:
        """Set the condition as an earlier pass did, because this pass knows nothing newer."""
        before = self._before[type_]
        self.set(type_, before["status"] == "True", before["reason"], before["message"])

    def remove(self, type_: str) -> None:
        """Remove the condition."""
        self._after.pop(type_, None)

    def is_set_in_this_pass(self, type_: str) -> bool:
        """Return whether this pass has set the condition, rather than an earlier one."""
        return type_ in self._set_in_this_pass

    def is_true(self, type_: str) -> bool:
        """Return whether the condition's status is True."""
        return type_ in self._after and self._after[type_]["status"] == "True"

    def is_set(self, type_: str) -> bool:
        """Return whether there is a condition of this type, with any status."""
        return type_ in self._after

    def get_reason_and_message(self, type_: str) -> tuple[str, str]:
        """Return reason and message of a condition that is set."""
        return self._after[type_]["reason"], self._after[type_]["message"]

    def to_list(self, *types: str) -> list[Object]:
        """Return the conditions of these types that are set, in this order."""
        return [self._after[type_] for type_ in types if type_ in self._after]

    def build_events(self, *types: str, quiet: frozenset[str] = frozenset()) -> list[Event]:
        """Return one event for each of these conditions whose status or reason changed; none for `quiet` reasons."""
        found = []
        for type_ in types:
            before, after = self._before.get(type_), self._after.get(type_)
            if after is None or after["reason"] in quiet:
                continue
            if before and (before["status"], before["reason"]) == (after["status"], after["reason"]):
                continue
            kind = "Warning" if after["reason"] in CATALOGUE else "Normal"
            event = Event(kind, after["reason"], truncate_text(after["message"], MAX_EVENT_BYTES))
            if event not in found:
                found.append(event)
        return found
