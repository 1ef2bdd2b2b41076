"""Select the fields of a pod that the operator reads, before the pod is cached.

A pod's variables, mounts and annotations may be as large as etcd allows, and Hone reads none of them. In: a pod as the
API server has it. Out: its kept fields, in new objects. Next: cache.py. A new field that the code reads has to be
added here; the tests plan from pods that went through this module.
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
# A map names the kept fields, a list describes its items, and a tuple has the beginnings of kept keys.
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
    """Return the kept fields of a pod. Other top-level fields, such as Hone's own marks, stay."""
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
