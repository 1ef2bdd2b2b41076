"""Keep objects that are too large out of the operator's memory.

An object in etcd has at most 1.5 MiB. As Python's dicts and lists it can take twenty times as much, and one process
works for all users of a cluster. Of an object that needs more than MAX_OBJECT_BYTES, cache.py keeps only its metadata,
its status if that is small, and its size; parsing.py refuses it with that size.
"""

import json
import marshal
import math
import sys
from itertools import islice
from typing import Any

from hone_operator.objects.resources import Object, find_controller
from hone_operator.objects.texts import truncate_all_texts

# Memory of one object. An InferenceService with 200 adapters takes a third of it.
MAX_OBJECT_BYTES = 1 << 20
# The field of an object that was too large, with the size of its JSON in bytes.
OVERSIZED_FIELD = "oversized"
_CONTAINER_BYTES, _VALUE_BYTES = 120, 60
# The most bytes of memory per byte of marshal's format, which is quick to write. A list of nulls has this ratio.
MAX_MEMORY_PER_ENCODED_BYTE = 68
_KEPT_METADATA = ("name", "namespace", "uid", "resourceVersion", "generation", "creationTimestamp", "deletionTimestamp")
_KEPT_LABEL_PREFIXES, _MAX_LABELS = ("hone.dev/", "app.kubernetes.io/"), 16
_EMPTY_TEXT_BYTES = sys.getsizeof("")


def drop_oversized(body: Object) -> Object:
    """Return the object, or the kept part of an object that is too large."""
    if len(marshal.dumps(body, 2)) * MAX_MEMORY_PER_ENCODED_BYTE <= MAX_OBJECT_BYTES or not is_larger(
        body, MAX_OBJECT_BYTES
    ):
        return body
    metadata = body["metadata"]
    reduced_metadata = {name: metadata[name] for name in _KEPT_METADATA if name in metadata}
    labels = metadata.get("labels") or {}
    own = ((name, value) for name, value in labels.items() if name.startswith(_KEPT_LABEL_PREFIXES))
    reduced_metadata["labels"] = dict(islice(own, _MAX_LABELS))
    if controller := find_controller(body):
        reduced_metadata["ownerReferences"] = [controller]
    truncate_all_texts(reduced_metadata)
    found: Object = {"apiVersion": body["apiVersion"], "kind": body["kind"], "metadata": reduced_metadata, "spec": {}}
    status = body.get("status")
    if status is not None:
        found["status"] = {} if is_larger(status, MAX_OBJECT_BYTES // 2) else status
    found[OVERSIZED_FIELD] = len(json.dumps(body, separators=(",", ":")))
    return found


def describe_oversize(body: Object) -> str | None:
    """Return a message about an object that was too large to keep; None for any other."""
    if OVERSIZED_FIELD not in body:
        return None
    limit = f"{MAX_OBJECT_BYTES >> 20} MiB of the operator's memory"
    return f"the object has {body[OVERSIZED_FIELD]} bytes, and takes more than {limit}"


def is_larger(value: Any, limit: int) -> bool:
    """Return whether a parsed value takes more than `limit` bytes, by a rough count that ends early."""
    return measure_memory(value, limit) > limit


def measure_memory(value: Any, enough: float = math.inf) -> int:
    """Return roughly how many bytes of memory a parsed value takes. The count ends at `enough`."""
    found, waiting = 0, [value]
    while waiting and found <= enough:
        match waiting.pop():
            case dict() as fields:
                found += _CONTAINER_BYTES + sum(_VALUE_BYTES + _measure_text(name) for name in fields)
                waiting += fields.values()
            case list() as items:
                found += _CONTAINER_BYTES + 8 * len(items)
                waiting += items
            case str() as text:
                found += _VALUE_BYTES + _measure_text(text)
            case _:
                found += _VALUE_BYTES
    return found


def _measure_text(text: str) -> int:
    """Return the bytes of a text's characters. One character outside ASCII makes all of them take up to four bytes."""
    return sys.getsizeof(text) - _EMPTY_TEXT_BYTES
