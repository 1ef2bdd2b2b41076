"""Whether a child is as it should be.

A digest of the desired object is kept on the child as an annotation: when it differs, the desired object has changed,
also by what it no longer has, and is applied again. The fields themselves show drift alone: what others changed, and
what was deleted from the child. Others may add to a child; what they add stays.
"""

import copy
import hashlib
import json
from decimal import InvalidOperation
from typing import Any

from hone_operator.objects.quantity import exact_number
from hone_operator.objects.resources import Object

# Annotation of a child: the digest of the desired object that it was made from.
APPLIED = "hone.dev/applied"

# Fields whose values are quantities, which the API server stores in its own notation.
_QUANTITIES = frozenset({"requests", "limits", "sizeLimit", "averageValue", "divisor"})
# Maps that mean something else with any entry more.
_WHOLE = frozenset({"selector", "matchLabels"})
# Maps that mean something though they have no entry.
_MEANINGFUL_EMPTY = frozenset({"emptyDir"})
# Fields that the API server leaves out when they are false: a test asks one about all of them.
_FALSE_LEFT_OUT = frozenset(
    {"readOnly", "tty", "stdin", "stdinOnce", "hostNetwork", "chapAuthDiscovery", "chapAuthSession"}
)
# Numbers in whose place the API server puts a default, or nothing, when they are 0.
_ZERO_IS_NONE = frozenset(
    {"initialDelaySeconds", "hostPort", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"}
)
_ENCODER = json.JSONEncoder(sort_keys=True)  # json.dumps would make one anew each time


def digest_of(value: Any) -> str:
    """Return a short digest of JSON data."""
    return hashlib.sha256(_ENCODER.encode(value).encode()).hexdigest()[:16]


def stamp(desired: Object, *, digest: str | None = None) -> Object:
    """Return the desired object with its digest, or with the given one, as an annotation of its own metadata."""
    stamped = copy.copy(desired)
    metadata = copy.copy(desired["metadata"])
    metadata["annotations"] = (metadata.get("annotations") or {}) | {APPLIED: digest or digest_of(desired)}
    stamped["metadata"] = metadata
    return stamped


def annotation_of(observed: Object | None, name: str) -> str | None:
    """Return an annotation of an object."""
    return (((observed or {}).get("metadata") or {}).get("annotations") or {}).get(name)


def is_current(observed: Object | None, stamped: Object) -> bool:
    """Return whether the child was made from this very desired object, and nobody has changed its fields."""
    return observed is not None and contains(observed, stamped)


def contains(observed: Any, desired: Any, *, as_quantity: bool = False) -> bool:
    """Return whether every field of `desired` is so in `observed`, which may have more (defaults, what others set)."""
    if isinstance(desired, dict):
        return isinstance(observed, dict) and all(
            _has_field(observed, name, value, as_quantity)
            for name, value in desired.items()
            if not is_empty(value) or (name in _MEANINGFUL_EMPTY and value is not None)
        )
    if isinstance(desired, list):
        if not isinstance(observed, list):
            return False
        if all(isinstance(item, dict) for item in desired):
            return _has_items(observed, desired)
    return bool(observed == desired) or (as_quantity and _is_same_amount(observed, desired))


def _has_items(observed: list[Any], desired: list[Any]) -> bool:
    """Return whether the items are there in this order: init containers and variables follow one another."""
    place = 0
    for item in desired:
        while place < len(observed) and not contains(observed[place], item):
            place += 1
    return place < len(observed) or not desired


def _has_field(observed: Object, name: str, value: Any, as_quantity: bool) -> bool:
    found = observed.get(name)
    if found is None and name in _FALSE_LEFT_OUT:
        return not value
    if value == 0 and name in _ZERO_IS_NONE:
        return True
    if name in _WHOLE and isinstance(found, dict) and isinstance(value, dict) and set(found) != set(value):
        return False
    return contains(found, value, as_quantity=as_quantity or name in _QUANTITIES)


def _is_same_amount(one: Any, other: Any) -> bool:
    if isinstance(one, (dict, list)) or isinstance(other, (dict, list)) or one is None:
        return False
    try:
        return exact_number(one) == exact_number(other)
    except InvalidOperation:
        return False


def is_empty(value: Any) -> bool:
    """Return whether the API server leaves this value out when it stores an object."""
    return value is None or value == {} or value == [] or value == ""
