"""How much of a child the cache keeps.

One process works for all users of a cluster, and anybody may write objects with Hone's labels. In: a child, and whether
its owner exists. Out: the complete child, or a PARTIAL one: its identity and its owner. A child is kept in full only
where a pass may need all of it: its owner exists, and Hone creates a child of this kind and name. An owner has few such
children. There may be any number of pods, so they share one limit for all namespaces (pod_cache_limit.py). snapshots.py
reads a partial child from the API server when a pass needs it.
"""

import logging
from collections import defaultdict
from typing import NamedTuple

from hone_api.layout import COMPONENT_LABEL, FINETUNEJOB_LABEL, INFERENCESERVICE_LABEL, MANAGED_BY_LABEL

from hone_operator.kube.pod_cache_limit import Place, Room
from hone_operator.objects import child_names, sizes
from hone_operator.objects.owners import find_owner_key
from hone_operator.objects.resources import (
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
    find_controller,
)
from hone_operator.objects.texts import truncate_text

# The field that marks a kept child as incomplete.
PARTIAL = "partial"
# Memory for all complete pods: more than ten thousand usual ones.
PODS_BYTES = 64 << 20
# Memory for all reduced pods.
REDUCED_BYTES = 32 << 20
# Memory for the status of one reduced pod. A usual status takes a third of it.
LARGEST_STATUS = 8 << 10
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
    """Return whether a kept child is complete."""
    return PARTIAL not in child and sizes.OVERSIZED_FIELD not in child


def is_made(resource: Resource, child: Object) -> bool:
    """Return whether Hone creates children of this kind and name for the owner that this child names."""
    owner = find_owner_key(resource, child)
    return owner is not None and (resource == PODS or child["metadata"]["name"] in _list_names(resource, owner))


def reduce_child(child: Object, *, with_status: bool = False) -> Object:
    """Return a child's identity, its owner, and whether it is being deleted, as a PARTIAL object."""
    metadata = child["metadata"]
    reduced_metadata = {name: metadata[name] for name in _METADATA if name in metadata}
    labels = metadata.get("labels") or {}
    if own := {name: labels[name] for name in _LABELS if name in labels}:
        reduced_metadata["labels"] = own
    if controller := find_controller(child):
        reference = {name: truncate_text(str(controller.get(name, "")), _LONGEST_NAME) for name in _REFERENCE}
        reduced_metadata["ownerReferences"] = [reference | {"controller": True}]
    found: Object = {
        "apiVersion": child["apiVersion"],
        "kind": child["kind"],
        "metadata": reduced_metadata,
        PARTIAL: True,
    }
    found["spec"] = {}
    status = child.get("status") or {}
    if with_status and not sizes.is_larger(status, LARGEST_STATUS):
        found["status"] = status
    elif "phase" in status:
        found["status"] = {"phase": truncate_text(str(status["phase"]), _LONGEST_NAME)}
    return found


class Unknown(NamedTuple):
    """How many pods of an owner have no room: the status of `reduced` ones is kept, nothing of `dropped` ones."""

    reduced: int
    dropped: int


class PodBudget:
    """The memory of all cached pods, and the pods for which there is no room."""

    def __init__(self) -> None:
        self._full, self._reduced = Room(PODS_BYTES), Room(REDUCED_BYTES)
        self._without: dict[Key | None, dict[Place, tuple[str, bool]]] = defaultdict(dict)
        self._owners: dict[Place, Key | None] = {}
        self._reported: set[str] = set()

    def admit(self, owner: Key | None, pod: Object) -> list[Place] | None:
        """Return the pods that have to be reduced for this one; None where this one has to be reduced."""
        return self._full.take(find_place(pod), owner, sizes.measure_memory(pod))

    def admit_reduced(self, owner: Key | None, pod: Object) -> list[Place] | None:
        """Return the pods that have to be dropped for a reduced one; None where this one has to be dropped."""
        return self._reduced.take(find_place(pod), owner, sizes.measure_memory(pod))

    def note(self, owner: Key | None, pod: Object, *, is_dropped: bool) -> None:
        """Note a pod for which there is no room."""
        place = find_place(pod)
        self._owners[place] = owner
        self._without[owner][place] = pod["metadata"]["uid"], is_dropped
        if place.namespace not in self._reported:
            self._reported.add(place.namespace)
            logger.warning(
                "All pods with Hone's labels take more than %d MiB of memory. Namespace %s has most: of some of its "
                "pods only the status is kept",
                PODS_BYTES >> 20,
                place.namespace,
            )

    def count_unknown(self, owner: Key) -> Unknown:
        """Return how many pods of an owner have no room."""
        found = [is_dropped for _, is_dropped in self._without.get(owner, {}).values()]
        return Unknown(len(found) - sum(found), sum(found))

    def release(self, place: Place) -> None:
        """Forget a pod, and free its room."""
        self._full.release(place)
        self._reduced.release(place)
        if place in self._owners:
            owner = self._owners.pop(place)
            del self._without[owner][place]
            if not self._without[owner]:
                del self._without[owner]
            if not self._owners:
                self._reported.clear()

    def keep_only(self, namespace: str, uids: set[str]) -> None:
        """Forget the pods without room that a list did not have."""
        for places in list(self._without.values()):
            for place, (uid, _) in list(places.items()):
                if namespace in ("", place.namespace) and uid not in uids:
                    self.release(place)


def find_place(pod: Object) -> Place:
    """Return namespace and name of a pod."""
    return Place(pod["metadata"].get("namespace", ""), pod["metadata"]["name"])


def _list_names(resource: Resource, owner: Key) -> tuple[str, ...]:
    if owner.resource == FINETUNEJOBS:
        if resource == JOBS:
            return (
                child_names.make_job_name(owner.name),
                child_names.make_prepare_job_name(owner.name),
                child_names.make_push_job_name(owner.name),
            )
        if resource == SERVICES:
            return (child_names.make_job_name(owner.name),)
        return (child_names.make_config_map_name(owner.name),) if resource == CONFIGMAPS else ()
    if resource == CONFIGMAPS:
        return (child_names.make_adapters_config_map_name(owner.name),)
    return (owner.name,) if resource in (DEPLOYMENTS, SERVICES, BUDGETS, AUTOSCALERS) else ()
