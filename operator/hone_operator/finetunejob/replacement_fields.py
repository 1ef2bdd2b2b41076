"""The fields whose change replaces a Job, and whether they have changed since it was created.

Kubernetes does not let a Job's template change, so a new value needs a new Job. In: a Job's annotations and the spec.
Out: whether they differ. objects/spec_fields.py makes and compares the records.
"""

import hashlib
import json
import re
from typing import Any

from hone_api.finetunejobs.spec import FineTuneJob

from hone_operator.objects.drift import get_annotation
from hone_operator.objects.resources import Object
from hone_operator.objects.spec_fields import FieldDigests, have_fields_changed, read_field_record, record_fields

# The annotation that versions before spec_fields.FIELDS_ANNOTATION wrote: one digest of the same fields, with their
# defaults.
MADE_FROM_ANNOTATION = "hone.dev/made-from"

# The fields that may change after creation, and from which the pod template of a Job is made.
CHANGEABLE = ("checkpoint", "resources", "cache", "token_secret", "pod", "tracking")

# The fields behind MADE_FROM_ANNOTATION with their defaults. Frozen: it describes Jobs that exist.
_FIRST_DEFAULTS: Object = {
    "checkpoint": {"saveSteps": 50, "saveTotalLimit": 2},
    "resources": {
        "gpuResource": "amd.com/gpu",
        "cpu": None,
        "memory": None,
        "sharedMemory": "8Gi",
        "gpus": 1,
        "nodes": 1,
    },
    "cache": None,
    "tokenSecret": None,
    "pod": {
        "image": None,
        "env": [],
        "nodeSelector": {},
        "tolerations": [],
        "affinity": None,
        "priorityClassName": None,
        "imagePullSecrets": [],
        "serviceAccountName": None,
        "supplementalGroups": [],
        "labels": {},
        "annotations": {},
        "schedulerName": None,
    },
}
_FIRST_ITEMS: dict[str, Object] = {
    "pod.env": {"name": None, "value": None},
    "pod.tolerations": {
        "key": None,
        "operator": "Equal",
        "value": None,
        "effect": None,
        "tolerationSeconds": None,
    },
    "pod.imagePullSecrets": {"name": None},
    "cache": {"claim": {"name": None}},
    "cache.claim": {"name": None},
    "tokenSecret": {"name": None, "key": "token"},
}
_FIRST_QUANTITIES = ("cpu", "memory", "sharedMemory")


def record_job_fields(job: FineTuneJob, *, has_token: bool) -> FieldDigests:
    """Return the record of a Job's fields. `has_token`: whether its pods read the hub token."""
    return record_fields(job.spec, _list_field_names(has_token))


def are_fields_changed(observed: Object, owner: Object, job: FineTuneJob, *, has_token: bool) -> bool:
    """Return whether fields from which the Job's pods are made have changed since the Job was created."""
    if (recorded := read_field_record(observed)) is not None:
        return have_fields_changed(recorded, job.spec, _list_field_names(has_token))
    if not (first := get_annotation(observed, MADE_FROM_ANNOTATION)):
        return False  # there is no record of what it was made from
    then_known = {
        path: digest for path, digest in record_fields(job.spec, CHANGEABLE).items() if _was_known(path.split("."))
    }
    return first != compute_first_digest(owner["spec"]) or have_fields_changed(then_known, job.spec, CHANGEABLE)


def is_recorded(observed: Object) -> bool:
    """Return whether a Job has a record of what it was made from."""
    return read_field_record(observed) is not None or bool(get_annotation(observed, MADE_FROM_ANNOTATION))


def compute_first_digest(spec: Object) -> str:
    """Return the value of MADE_FROM_ANNOTATION for a spec, without the fields that later versions added."""
    fields = {name: _with_first_defaults(spec.get(name), default, name) for name, default in _FIRST_DEFAULTS.items()}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]


def _with_first_defaults(value: Any, default: Any, path: str) -> Any:
    if value is None:
        return default
    shape = _FIRST_ITEMS.get(path, default)
    if isinstance(value, list) and isinstance(shape, dict):
        return [_with_first_defaults(item, shape, "") for item in value]
    if isinstance(value, dict) and isinstance(shape, dict) and shape:
        return {
            name: _with_first_defaults(value.get(name), one, f"{path}.{name}" if path else name)
            for name, one in shape.items()
        }
    name = path.rpartition(".")[2]
    return str(value) if name in _FIRST_QUANTITIES and isinstance(value, int) else value


def _was_known(path: list[str]) -> bool:
    """Return whether the field was among those of the first digest."""
    names = [part for part in path if not re.fullmatch(r"\d+", part)]
    found: Any = _FIRST_DEFAULTS
    for depth, name in enumerate(names):
        shape = _FIRST_ITEMS.get(".".join(names[:depth]), found)
        if not isinstance(shape, dict) or not shape:
            return True  # below a field that was recorded with all its parts
        if name not in shape:
            return False
        found = shape[name]
    return True


def _list_field_names(has_token: bool) -> list[str]:
    return [name for name in CHANGEABLE if has_token or name != "token_secret"]
