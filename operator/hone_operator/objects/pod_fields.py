"""Which fields of a pod the operator reads; all others are left out before a pod is kept.

A pod's variables, mounts and annotations may have as much as etcd takes, and Hone reads none of them. In: a pod as the
API server has it. Out: what of it is kept, in new objects. Next: cache.py. A new field that the code reads has to be
named here; the plans of the tests are made from pods that went through this module.
"""

from typing import Any

from hone_operator.objects.resources import Object

_ALL: Any = None
# Beginnings of labels and annotations that are read.
_OWN = ("hone.dev/", "app.kubernetes.io/", "batch.kubernetes.io/", "pod-template-hash")
_METADATA = ("name", "namespace", "uid", "resourceVersion", "generation", "creationTimestamp", "deletionTimestamp")
_REFERENCES = [dict.fromkeys(("apiVersion", "kind", "name", "uid", "controller"), _ALL)]
_MOUNTS = [dict.fromkeys(("name", "mountPath", "subPath"), _ALL)]
_CONTAINERS = [{"name": _ALL, "image": _ALL, "resources": _ALL, "volumeMounts": _MOUNTS}]
_STATUSES = [dict.fromkeys(("name", "state", "lastState", "restartCount"), _ALL)]
_REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
# A map names the fields that are kept, a list holds what is kept of its items, a tuple the beginnings of keys.
_KEPT: dict[str, Any] = {
    "apiVersion": _ALL,
    "kind": _ALL,
    "metadata": dict.fromkeys(_METADATA, _ALL) | {"labels": _OWN, "annotations": _OWN, "ownerReferences": _REFERENCES},
    "spec": {
        **dict.fromkeys(("nodeName", "schedulerName", "schedulingGates", "activeDeadlineSeconds"), _ALL),
        **dict.fromkeys(("nodeSelector", "tolerations"), _ALL),
        "affinity": {"nodeAffinity": {_REQUIRED: _ALL}},
        "containers": _CONTAINERS,
        "initContainers": _CONTAINERS,
        "volumes": [{"name": _ALL, "persistentVolumeClaim": _ALL}],
    },
    "status": {
        **dict.fromkeys(("phase", "reason", "message", "podIP", "nominatedNodeName", "conditions"), _ALL),
        "containerStatuses": _STATUSES,
        "initContainerStatuses": _STATUSES,
    },
}


def select_fields(pod: Object) -> Object:
    """Return what is kept of a pod. Its other top-level fields, which Hone's own notes are, stay."""
    found: Object = {name: value for name, value in pod.items() if name not in ("metadata", "spec", "status")}
    return found | {name: _select(pod[name], _KEPT[name]) for name in ("metadata", "spec", "status") if name in pod}


def _select(value: Any, kept: Any) -> Any:
    if isinstance(kept, dict) and isinstance(value, dict):
        return {name: _select(value[name], part) for name, part in kept.items() if name in value}
    if isinstance(kept, list) and isinstance(value, list):
        return [_select(item, kept[0]) for item in value]
    if isinstance(kept, tuple) and isinstance(value, dict):
        return {name: text for name, text in value.items() if name.startswith(kept)}
    return value
