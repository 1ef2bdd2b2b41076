"""Keep objects that are too large out of the operator's memory.

An object in etcd has at most 1.5 MiB. As Python's dicts and lists it can take twenty times as much, and one process
works for all users of a cluster. Of an object that needs more than LARGEST_BYTES, cache.py keeps its metadata and its
size alone, and observe.py refuses it with that size.
"""

import json
import marshal
from typing import Any

from hone_operator.resources import Object

LARGEST_BYTES = 1 << 20
"""Of memory. An InferenceService with 200 adapters takes a third of it."""
OVERSIZED = "oversized"
"""The field of a kept object, in place of its spec and status, with the bytes of its JSON."""
_CONTAINER, _VALUE = 120, 60
MOST_PER_BYTE = 68
"""Of memory for each byte of marshal's format, which is quick to make: a list of nulls has the most."""
_METADATA = ("name", "namespace", "uid", "resourceVersion", "generation", "creationTimestamp", "deletionTimestamp")
_LABELS, _MOST_OWNERS = ("hone.dev/", "app.kubernetes.io/"), 8


def bound(body: Object) -> Object:
    """Return the object, or what is kept of one that is too large."""
    if len(marshal.dumps(body, 2)) * MOST_PER_BYTE <= LARGEST_BYTES or not is_larger(body, LARGEST_BYTES):
        return body
    metadata = body["metadata"]
    kept = {name: metadata[name] for name in _METADATA if name in metadata}
    labels = metadata.get("labels") or {}
    kept["labels"] = {name: value for name, value in labels.items() if name.startswith(_LABELS)}
    if owners := metadata.get("ownerReferences"):
        kept["ownerReferences"] = owners[:_MOST_OWNERS]
    found: Object = {"apiVersion": body["apiVersion"], "kind": body["kind"], "metadata": kept, "spec": {}}
    status = body.get("status")
    if status is not None:
        found["status"] = {} if is_larger(status, LARGEST_BYTES // 2) else status
    found[OVERSIZED] = len(json.dumps(body, separators=(",", ":")))
    return found


def describe_oversize(body: Object) -> str | None:
    """Return what is wrong with an object that was too large to keep; None: it was not."""
    if OVERSIZED not in body:
        return None
    limit = f"{LARGEST_BYTES >> 20} MiB of the operator's memory"
    return f"the object has {body[OVERSIZED]} bytes, and takes more than {limit}"


def is_larger(value: Any, limit: int) -> bool:
    """Whether a parsed value takes more than so many bytes, by a rough count that ends early."""
    left, waiting = limit, [value]
    while waiting:
        match waiting.pop():
            case dict() as found:
                left -= _CONTAINER + sum(_VALUE + len(name) for name in found)
                waiting += found.values()
            case list() as found:
                left -= _CONTAINER + 8 * len(found)
                waiting += found
            case str() as text:
                left -= _VALUE + len(text)
            case _:
                left -= _VALUE
        if left < 0:
            return True
    return False
