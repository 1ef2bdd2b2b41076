"""Which fields of a child Hone takes over from other writers before it applies the child.

Server-side apply removes only what the same manager applied before. So what Hone wrote otherwise becomes applied by
it, and all of a child that was restored from a backup, whose writer is the tool that restored it. And it can't put
right a field of which only one of several may be set: the one that somebody else set stays beside Hone's own, and the
API server refuses both. In: the child with its managedFields. Out: a merge patch of these. Next: execution.py.
"""

import re
from typing import Any

from hone_operator.api import FIELD_MANAGER
from hone_operator.resources import Object

_WRITTEN = ("f:spec", "f:data", "f:binaryData", "f:immutable")
_EXCLUDES = re.compile(
    r"more than (1|one) |not be (specified|set) when|cannot be (both )?set|both be set|mutually exclusive"
    r"|Duplicate value"
)


def excludes_another(message: str) -> bool:
    """Return whether the API server refuses an object because it has fields of which only one may be set."""
    return _EXCLUDES.search(message) is not None


def take_over(found: Object) -> Object | None:
    """Return the patch by which Hone becomes the applier of what it wrote; None when it is already.

    Where no field is Hone's, the child comes from a backup, and all that it has is taken over.
    """
    entries = _entries(found)
    own = [each for each in entries if each.get("manager") == FIELD_MANAGER]
    taken = own or entries
    if not taken or (len(taken) == 1 and taken[0].get("operation") == "Apply" and own):
        return None
    fields: Object = {}
    for each in taken:
        fields = _merged(fields, each.get("fieldsV1") or {})
    return _patch(found, fields, [each for each in _all(found) if each not in taken])


def take_over_spec(found: Object) -> Object | None:
    """Return the patch by which Hone becomes the applier of all but metadata; None when nobody else wrote any.

    Metadata stays whose it is, that of a pod template included: `kubectl rollout restart` writes there.
    """
    fields: Object = {}
    kept = []
    for each in _all(found):
        theirs = each.get("fieldsV1") or {}
        if each.get("subresource"):
            kept.append(each)
        elif each.get("manager") == FIELD_MANAGER:
            fields = _merged(fields, theirs)
        else:
            taken, left = _split(theirs)
            fields = _merged(fields, taken)
            if left:
                kept.append(each | {"fieldsV1": left})
    return _patch(found, fields, kept) if kept != _foreign(found) else None


def _patch(found: Object, fields: Object, kept: list[Object]) -> Object:
    metadata = found["metadata"]
    applied = {
        "manager": FIELD_MANAGER,
        "operation": "Apply",
        "apiVersion": found["apiVersion"],
        "fieldsType": "FieldsV1",
        "fieldsV1": fields,
    }
    versions = {name: metadata[name] for name in ("uid", "resourceVersion")}
    return {"metadata": {**versions, "managedFields": [*kept, applied]}}


def _all(found: Object) -> list[Object]:
    return found["metadata"].get("managedFields") or []


def _entries(found: Object) -> list[Object]:
    """Return who wrote what, without writers of the status and the scale."""
    return [each for each in _all(found) if not each.get("subresource")]


def _foreign(found: Object) -> list[Object]:
    return [each for each in _all(found) if each.get("subresource") or each.get("manager") != FIELD_MANAGER]


def _split(fields: Object) -> tuple[Object, Object]:
    """Return what is taken of somebody else's fields, and what is left of them."""
    taken = {name: value for name, value in fields.items() if name in _WRITTEN}
    left = {name: value for name, value in fields.items() if name not in _WRITTEN}
    template = taken.get("f:spec", {}).get("f:template", {})
    if "f:metadata" in template:
        rest = {name: value for name, value in template.items() if name != "f:metadata"}
        taken["f:spec"] = taken["f:spec"] | {"f:template": rest}
        left["f:spec"] = {"f:template": {"f:metadata": template["f:metadata"]}}
    return taken, left


def _merged(one: Any, other: Any) -> Any:
    """Return the union of two sets of fields, which are maps of maps."""
    return one | {name: _merged(one.get(name, {}), value) for name, value in other.items()}
