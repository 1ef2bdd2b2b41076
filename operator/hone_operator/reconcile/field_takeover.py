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


def excludes_another(message: str) -> bool:
    """Return whether the API server refuses an object because it has fields of which only one may be set."""
    return _EXCLUDES.search(message) is not None


def take_over(found: Object) -> Object | None:
    """Return the patch by which Hone becomes the applier of the fields that it wrote; None when it already is.

    A child without any field of Hone's comes from a backup, and all of its fields are taken over.
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


def take_over_named(found: Object, desired: Object, message: str) -> Object | None:
    """Return the patch by which Hone becomes the applier of the fields that a refusal is about; None without any.

    Others wrote these fields into parts of the child that Hone writes as well. The API server names one of two fields
    that exclude each other, by its index in a list that has both.
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
            taken: Object = {}
            for parts, words in _refusals(message):
                taken = _merged(taken, _pick(theirs, found, desired, parts, words))
            fields = _merged(fields, taken)
            if left := _without(theirs, taken):
                kept.append(each | {"fieldsV1": left})
    return _patch(found, fields, kept) if kept != _foreign(found) else None


def give_back(found: Object, taken: Object) -> Object:
    """Return the patch that undoes taking over: `found` is the child before it, `taken` after it."""
    metadata = {name: taken["metadata"][name] for name in ("uid", "resourceVersion")}
    return {"metadata": metadata | {"managedFields": _all(found)}}


def _refusals(message: str) -> list[tuple[list[str], str]]:
    """Return the path in the object, and the text, of each refusal. In a path `[]` stands for an item of a list."""
    places = list(_REFUSAL.finditer(message))
    ends = [*(place.start() for place in places[1:]), len(message)]
    found = []
    for place, end in zip(places, ends, strict=True):
        parts = _PART.findall(place["path"])
        parts = ["[]" if part.startswith("[") else part for part in parts]
        found.append((parts[: max(len(parts) - 1, 1)], message[place.start() : end]))
    return found


def _pick(theirs: Object, found: Any, desired: Any, parts: list[str], words: str) -> Object:
    """Return the fields of another writer in this part of the object: those that the text names, else all."""
    if not parts:
        names = set(re.findall(r"\w+", words))
        return {name: value for name, value in theirs.items() if name[2:] in names} or theirs
    part, *rest = parts
    picked: Object = {}
    if part != "[]":
        name = f"f:{part}"
        if name in theirs and isinstance(desired, dict) and isinstance(found, dict):
            picked = {name: _pick(theirs[name], found.get(part), desired.get(part), rest, words)}
        return {name: value for name, value in picked.items() if value}
    duplicate = _DUPLICATE.search(words)
    for key, inner in theirs.items():
        if not key.startswith("k:"):
            continue
        theirs_of, ours = _item(found, key), _item(desired, key)
        if ours is not None:
            picked[key] = _pick(inner, theirs_of, ours, rest, words)
        elif not rest and duplicate and duplicate["value"] in map(str, (theirs_of or {}).values()):
            picked[key] = inner
    return {key: value for key, value in picked.items() if value}


def _item(items: Any, key: str) -> Any:
    """Return the item of a list by its key in managedFields. Fields that Hone leaves out count as their defaults."""
    wanted = json.loads(key.removeprefix("k:"))
    found = items if isinstance(items, list) else []
    return next((item for item in found if all(item.get(name, value) == value for name, value in wanted.items())), None)


def _without(fields: Object, taken: Object) -> Object:
    """Return the fields that are left. A map that was empty before is a field; one that becomes empty is dropped."""
    left = {}
    for name, value in fields.items():
        if name not in taken:
            left[name] = value
        elif value and (rest := _without(value, taken[name])):
            left[name] = rest
    return left


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
    """Return the managedFields without the writers of the status and the scale."""
    return [each for each in _all(found) if not each.get("subresource")]


def _foreign(found: Object) -> list[Object]:
    return [each for each in _all(found) if each.get("subresource") or each.get("manager") != FIELD_MANAGER]


def _merged(one: Any, other: Any) -> Any:
    """Return the union of two sets of fields, which are maps of maps."""
    return one | {name: _merged(one.get(name, {}), value) for name, value in other.items()}
