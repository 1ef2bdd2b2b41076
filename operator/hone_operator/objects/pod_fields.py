"""Select the fields of a pod that the operator reads, before the pod is cached.

A pod's variables, mounts and annotations may be as large as etcd allows, and Hone reads none of them. In: a pod as the
API server has it. Out: its kept fields, in new objects. Next: cache.py. A new field that the code reads has to be
added here; the tests plan from pods that went through this module.
"""

from typing import Any

from hone_operator.objects.resources import Object

_ALL_FIELDS: Any = None
# Beginnings of labels and annotations that are read.
_OWN_FIELDS = ("hone.dev/", "app.kubernetes.io/", "batch.kubernetes.io/", "pod-template-hash")
_METADATA_FIELDS = (
    "name",
    "namespace",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
)
_REFERENCE_FIELDS = [dict.fromkeys(("apiVersion", "kind", "name", "uid", "controller"), _ALL_FIELDS)]
_MOUNT_FIELDS = [dict.fromkeys(("name", "mountPath", "subPath"), _ALL_FIELDS)]
_CONTAINER_FIELDS = [
    {"name": _ALL_FIELDS, "image": _ALL_FIELDS, "resources": _ALL_FIELDS, "volumeMounts": _MOUNT_FIELDS}
]
_STATUS_FIELDS = [dict.fromkeys(("name", "state", "lastState", "restartCount"), _ALL_FIELDS)]
_REQUIREMENT_FIELDS = "requiredDuringSchedulingIgnoredDuringExecution"
# A map names the kept fields, a list describes its items, and a tuple has the beginnings of kept keys.
_KEPT_FIELDS: dict[str, Any] = {
    "apiVersion": _ALL_FIELDS,
    "kind": _ALL_FIELDS,
    "metadata": dict.fromkeys(_METADATA_FIELDS, _ALL_FIELDS)
    | {"labels": _OWN_FIELDS, "annotations": _OWN_FIELDS, "ownerReferences": _REFERENCE_FIELDS},
    "spec": {
        **dict.fromkeys(("nodeName", "schedulerName", "schedulingGates", "activeDeadlineSeconds"), _ALL_FIELDS),
        **dict.fromkeys(("nodeSelector", "tolerations"), _ALL_FIELDS),
        "affinity": {"nodeAffinity": {_REQUIREMENT_FIELDS: _ALL_FIELDS}},
        "containers": _CONTAINER_FIELDS,
        "initContainers": _CONTAINER_FIELDS,
        "volumes": [{"name": _ALL_FIELDS, "persistentVolumeClaim": _ALL_FIELDS}],
    },
    "status": {
        **dict.fromkeys(("phase", "reason", "message", "podIP", "nominatedNodeName", "conditions"), _ALL_FIELDS),
        "containerStatuses": _STATUS_FIELDS,
        "initContainerStatuses": _STATUS_FIELDS,
    },
}


def select_fields(pod: Object) -> Object:
    """Return the kept fields of a pod. Other top-level fields, such as Hone's own marks, stay."""
    found: Object = {name: value for name, value in pod.items() if name not in ("metadata", "spec", "status")}
    return found | {
        name: _select_value(pod[name], _KEPT_FIELDS[name]) for name in ("metadata", "spec", "status") if name in pod
    }


def _select_value(value: Any, selection: Any) -> Any:
    if isinstance(selection, dict) and isinstance(value, dict):
        return {name: _select_value(value[name], part) for name, part in selection.items() if name in value}
    if isinstance(selection, list) and isinstance(value, list):
        return [_select_value(item, selection[0]) for item in value]
    if isinstance(selection, tuple) and isinstance(value, dict):
        return {name: text for name, text in value.items() if name.startswith(selection)}
    return value
