"""Which fields of a child Hone takes over from other writers before it applies the child.

Server-side apply removes only fields that the same manager applied before. So Hone becomes the applier of two kinds of
fields: those that it wrote in another way, and all fields of a child that a backup tool restored. Server-side apply
also can't restore a field that excludes another one: the field that somebody else set stays next to Hone's own, and the
API server refuses both. In: the child with its managedFields. Out: a merge patch of these. Next: execution.py, which
takes over nothing while Hone's own object is refused, and gives fields back where the takeover did not help.
"""

import json
import re
from typing import Any

from hone_operator.kube.client import FIELD_MANAGER
from hone_operator.objects.resources import Object

_EXCLUDES = re.compile(
    r"more than (1|one) |not be (specified|set) when|cannot be (both )?set|both be set|mutually exclusive"
    r"|Duplicate value"
)
_REFUSAL = re.compile(
    r"(?P<path>spec(?:\.\w+|\[\d+\])*): (?:Invalid value|Duplicate value|Forbidden|Required value|Unsupported value)"
)
_PART = re.compile(r"(?<![\w\[])\w+|\[\d+\]")
_DUPLICATE = re.compile(r"Duplicate value: \"?(?P<value>[^\",]*)")


def is_exclusion_refusal(message: str) -> bool:
    """Return whether the API server refuses an object because it has fields of which only one may be set."""
    return _EXCLUDES.search(message) is not None


def build_takeover_patch(found: Object) -> Object | None:
    """Return the patch by which Hone becomes the applier of the fields that it wrote; None when it already is.

    A child without any field of Hone's comes from a backup, and all of its fields are taken over.
    """
    entries = _list_spec_entries(found)
    own = [each for each in entries if each.get("manager") == FIELD_MANAGER]
    taken = own or entries
    if not taken or (len(taken) == 1 and taken[0].get("operation") == "Apply" and own):
        return None
    fields: Object = {}
    for each in taken:
        fields = _merge_fields(fields, each.get("fieldsV1") or {})
    return _build_patch(found, fields, [each for each in _list_managed_fields(found) if each not in taken])


def build_named_takeover_patch(found: Object, desired: Object, message: str) -> Object | None:
    """Return the patch by which Hone becomes the applier of the fields that a refusal is about; None without any.

    Others wrote these fields into parts of the child that Hone writes as well. The API server names one of two fields
    that exclude each other, by its index in a list that has both.
    """
    fields: Object = {}
    other_entries = []
    for each in _list_managed_fields(found):
        theirs = each.get("fieldsV1") or {}
        if each.get("subresource"):
            other_entries.append(each)
        elif each.get("manager") == FIELD_MANAGER:
            fields = _merge_fields(fields, theirs)
        else:
            taken: Object = {}
            for parts, text in _parse_refusals(message):
                taken = _merge_fields(taken, _pick_fields(theirs, found, desired, parts, text))
            fields = _merge_fields(fields, taken)
            if left := _subtract_fields(theirs, taken):
                other_entries.append(each | {"fieldsV1": left})
    return _build_patch(found, fields, other_entries) if other_entries != _list_foreign_entries(found) else None


def build_restore_patch(found: Object, taken: Object) -> Object:
    """Return the patch that undoes taking over: `found` is the child before it, `taken` after it."""
    metadata = {name: taken["metadata"][name] for name in ("uid", "resourceVersion")}
    return {"metadata": metadata | {"managedFields": _list_managed_fields(found)}}


def _parse_refusals(message: str) -> list[tuple[list[str], str]]:
    """Return the path in the object, and the text, of each refusal. In a path `[]` stands for an item of a list."""
    places = list(_REFUSAL.finditer(message))
    ends = [*(place.start() for place in places[1:]), len(message)]
    found = []
    for place, end in zip(places, ends, strict=True):
        parts = _PART.findall(place["path"])
        parts = ["[]" if part.startswith("[") else part for part in parts]
        found.append((parts[: max(len(parts) - 1, 1)], message[place.start() : end]))
    return found


def _pick_fields(theirs: Object, found: Any, desired: Any, parts: list[str], message: str) -> Object:
    """Return the fields of another writer in this part of the object: those that the text names, else all."""
    if not parts:
        names = set(re.findall(r"\w+", message))
        return {name: value for name, value in theirs.items() if name[2:] in names} or theirs
    part, *rest = parts
    picked: Object = {}
    if part != "[]":
        name = f"f:{part}"
        if name in theirs and isinstance(desired, dict) and isinstance(found, dict):
            picked = {name: _pick_fields(theirs[name], found.get(part), desired.get(part), rest, message)}
        return {name: value for name, value in picked.items() if value}
    duplicate = _DUPLICATE.search(message)
    for key, inner in theirs.items():
        if not key.startswith("k:"):
            continue
        theirs_of, ours = _find_item(found, key), _find_item(desired, key)
        if ours is not None:
            picked[key] = _pick_fields(inner, theirs_of, ours, rest, message)
        elif not rest and duplicate and duplicate["value"] in map(str, (theirs_of or {}).values()):
            picked[key] = inner
    return {key: value for key, value in picked.items() if value}


def _find_item(items: Any, key: str) -> Any:
    """Return the item of a list by its key in managedFields. Fields that Hone leaves out count as their defaults."""
    item_keys = json.loads(key.removeprefix("k:"))
    found = items if isinstance(items, list) else []
    return next(
        (item for item in found if all(item.get(name, value) == value for name, value in item_keys.items())), None
    )


def _subtract_fields(fields: Object, taken: Object) -> Object:
    """Return the fields that are left. A map that was empty before is a field; one that becomes empty is dropped."""
    left = {}
    for name, value in fields.items():
        if name not in taken:
            left[name] = value
        elif value and (rest := _subtract_fields(value, taken[name])):
            left[name] = rest
    return left


def _build_patch(found: Object, fields: Object, other_entries: list[Object]) -> Object:
    metadata = found["metadata"]
    applied = {
        "manager": FIELD_MANAGER,
        "operation": "Apply",
        "apiVersion": found["apiVersion"],
        "fieldsType": "FieldsV1",
        "fieldsV1": fields,
    }
    versions = {name: metadata[name] for name in ("uid", "resourceVersion")}
    return {"metadata": {**versions, "managedFields": [*other_entries, applied]}}


def _list_managed_fields(found: Object) -> list[Object]:
    return found["metadata"].get("managedFields") or []


def _list_spec_entries(found: Object) -> list[Object]:
    """Return the managedFields without the writers of the status and the scale."""
    return [each for each in _list_managed_fields(found) if not each.get("subresource")]


def _list_foreign_entries(found: Object) -> list[Object]:
    return [
        each for each in _list_managed_fields(found) if each.get("subresource") or each.get("manager") != FIELD_MANAGER
    ]


def _merge_fields(one: Any, other: Any) -> Any:
    """Return the union of two sets of fields, which are maps of maps."""
    return one | {name: _merge_fields(one.get(name, {}), value) for name, value in other.items()}
