"""Detect whether a child differs from the desired object.

A child has a digest of the desired object as an annotation. When it differs, the desired object has changed, also by
removed fields, and is applied again. The comparison of fields finds drift: fields that others changed or deleted.
Fields that others add to a child are left alone.
"""

import copy
import hashlib
import json
from decimal import InvalidOperation
from typing import Any

from hone_operator.objects.quantity import parse_exactly
from hone_operator.objects.resources import Object

# Annotation of a child: the digest of the desired object from which it was made.
APPLIED_ANNOTATION = "hone.dev/applied"

# Fields whose values are quantities, which the API server stores in its own notation.
_QUANTITIES = frozenset({"requests", "limits", "sizeLimit", "averageValue", "divisor"})
# Maps whose meaning changes with any additional entry.
_WHOLE = frozenset({"selector", "matchLabels"})
# Maps that have a meaning even when they are empty.
_MEANINGFUL_EMPTY = frozenset({"emptyDir"})
# Fields that the API server leaves out when they are false. A test compares this list with an API server.
_FALSE_LEFT_OUT = frozenset(
    {"readOnly", "tty", "stdin", "stdinOnce", "hostNetwork", "chapAuthDiscovery", "chapAuthSession"}
)
# Numbers that the API server replaces by a default, or drops, when they are 0.
_ZERO_IS_NONE = frozenset(
    {"initialDelaySeconds", "hostPort", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"}
)
_ENCODER = json.JSONEncoder(sort_keys=True)  # json.dumps would create one each time


def compute_digest(value: Any) -> str:
    """Return a short digest of JSON data."""
    return hashlib.sha256(_ENCODER.encode(value).encode()).hexdigest()[:16]


def add_digest(desired: Object, *, digest: str | None = None) -> Object:
    """Return the desired object with its digest, or with the given one, as an annotation of its own metadata."""
    stamped = copy.copy(desired)
    metadata = copy.copy(desired["metadata"])
    metadata["annotations"] = (metadata.get("annotations") or {}) | {
        APPLIED_ANNOTATION: digest or compute_digest(desired)
    }
    stamped["metadata"] = metadata
    return stamped


def get_annotation(observed: Object | None, name: str) -> str | None:
    """Return an annotation of an object."""
    return (((observed or {}).get("metadata") or {}).get("annotations") or {}).get(name)


def is_as_desired(observed: Object | None, stamped: Object) -> bool:
    """Return whether the child was made from this desired object, and nobody changed its fields."""
    return observed is not None and contains_fields(observed, stamped)


def contains_fields(observed: Any, desired: Any, *, as_quantity: bool = False) -> bool:
    """Return whether `observed` has every field of `desired`. It may have more: defaults, and fields of others."""
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
    """Return whether the items are there in this order: the order of init containers and variables matters."""
    place = 0
    for item in desired:
        while place < len(observed) and not contains_fields(observed[place], item):
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
    return contains_fields(found, value, as_quantity=as_quantity or name in _QUANTITIES)


def _is_same_amount(one: Any, other: Any) -> bool:
    if isinstance(one, (dict, list)) or isinstance(other, (dict, list)) or one is None:
        return False
    try:
        return parse_exactly(one) == parse_exactly(other)
    except InvalidOperation:
        return False


def is_empty(value: Any) -> bool:
    """Return whether the API server leaves this value out when it stores an object."""
    return value is None or value == {} or value == [] or value == ""
