"""How much of a child is kept in memory.

One process works for all users of a cluster, and anybody may write objects with Hone's labels. In: a child, and whether
its owner exists. Out: all of it, or PARTIAL: who it is and whose. A child is kept in full only where a pass may need
all of it: its owner exists, and Hone makes a child of this kind and name. Of an owner's children there are then few.
Pods, of which there may be any number, have a limit for each namespace. observe.py reads what is kept in part when a
pass needs it.
"""

import logging
from collections import defaultdict

from hone_api.layout import COMPONENT_LABEL, FINETUNEJOB_LABEL, INFERENCESERVICE_LABEL, MANAGED_BY_LABEL

from hone_operator import adapters, children, sizes
from hone_operator.ownership import owner_key
from hone_operator.resources import (
    AUTOSCALERS,
    BUDGETS,
    CONFIGMAPS,
    DEPLOYMENTS,
    FINETUNEJOBS,
    JOBS,
    PODS,
    SERVICES,
    Key,
    Object,
    Resource,
    controller_of,
)
from hone_operator.texts import cut

PARTIAL = "partial"
"""The field of a kept child that says that there is more of it."""
PODS_BYTES = 128 << 20
"""Of memory for the pods of a namespace: more than a thousand usual ones."""
LARGEST_STATUS = 16 << 10
"""Of memory, of a pod for which there is no room."""
_METADATA = ("name", "namespace", "uid", "resourceVersion", "generation", "creationTimestamp", "deletionTimestamp")
_LABELS = (
    MANAGED_BY_LABEL,
    COMPONENT_LABEL,
    FINETUNEJOB_LABEL,
    INFERENCESERVICE_LABEL,
    "batch.kubernetes.io/job-name",
    "batch.kubernetes.io/job-completion-index",
)
_REFERENCE, _LONGEST_NAME = ("apiVersion", "kind", "name", "uid"), 253

logger = logging.getLogger(__name__)


def is_complete(child: Object) -> bool:
    """Return whether a kept child has all that the API server has."""
    return PARTIAL not in child and sizes.OVERSIZED not in child


def is_made(resource: Resource, child: Object) -> bool:
    """Return whether Hone makes children of this kind and name for the owner that this child says it has."""
    owner = owner_key(resource, child)
    return owner is not None and (resource == PODS or child["metadata"]["name"] in _names(resource, owner))


def reduce(child: Object, *, with_status: bool = False) -> Object:
    """Return who a child is, whose, and whether it leaves."""
    metadata = child["metadata"]
    kept = {name: metadata[name] for name in _METADATA if name in metadata}
    labels = metadata.get("labels") or {}
    if own := {name: labels[name] for name in _LABELS if name in labels}:
        kept["labels"] = own
    if controller := controller_of(child):
        reference = {name: cut(str(controller.get(name, "")), _LONGEST_NAME) for name in _REFERENCE}
        kept["ownerReferences"] = [reference | {"controller": True}]
    found: Object = {"apiVersion": child["apiVersion"], "kind": child["kind"], "metadata": kept, PARTIAL: True}
    found["spec"] = {}
    status = child.get("status") or {}
    if with_status and not sizes.is_larger(status, LARGEST_STATUS):
        found["status"] = status
    elif "phase" in status:
        found["status"] = {"phase": cut(str(status["phase"]), _LONGEST_NAME)}
    return found


class PodBudget:
    """The memory that the pods of each namespace take."""

    def __init__(self) -> None:
        self._bytes: dict[str, dict[str, int]] = defaultdict(dict)
        self._sums: dict[str, int] = defaultdict(int)
        self._reported: set[str] = set()

    def admit(self, pod: Object) -> Object:
        """Return the pod, or its status and metadata alone where there is no room for more."""
        namespace, name = pod["metadata"].get("namespace", ""), pod["metadata"]["name"]
        needed = sizes.measure(pod)
        if self._sums[namespace] + needed <= PODS_BYTES:
            self._bytes[namespace][name] = needed
            self._sums[namespace] += needed
            return pod
        if namespace not in self._reported:
            self._reported.add(namespace)
            logger.warning(
                "The pods with Hone's labels in namespace %s take more than %d MiB of memory: of further ones only the "
                "status is kept",
                namespace,
                PODS_BYTES >> 20,
            )
        return reduce(pod, with_status=True) | {"spec": {"containers": []}}

    def release(self, namespace: str, name: str) -> None:
        """Take back what a pod has."""
        of_namespace = self._bytes.get(namespace)
        if of_namespace is None:
            return
        self._sums[namespace] -= of_namespace.pop(name, 0)
        if not of_namespace:
            del self._bytes[namespace], self._sums[namespace]
            self._reported.discard(namespace)


def _names(resource: Resource, owner: Key) -> tuple[str, ...]:
    if owner.resource == FINETUNEJOBS:
        if resource == JOBS:
            return children.job_name(owner.name), children.prepare_job_name(owner.name)
        if resource == SERVICES:
            return (children.job_name(owner.name),)
        return (children.config_map_name(owner.name),) if resource == CONFIGMAPS else ()
    if resource == CONFIGMAPS:
        return (adapters.config_map_name(owner.name),)
    return (owner.name,) if resource in (DEPLOYMENTS, SERVICES, BUDGETS, AUTOSCALERS) else ()
