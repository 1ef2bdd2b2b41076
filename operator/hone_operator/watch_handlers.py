"""The handlers of lists and watches: keep each object in the cache, and queue the owners that a change concerns.

In: objects that reflector.py reports, and answers of pods from pod_poller.py. Out: the cache, and keys in the work
queue. Next: controller.py, whose workers take the keys.
"""

import asyncio
import logging
from collections.abc import Callable

from hone_operator.inferenceservice.dependents import list_named_jobs
from hone_operator.kube.cache import Cache
from hone_operator.kube.workqueue import Scope, WorkQueue
from hone_operator.objects.owners import find_owner_key
from hone_operator.objects.resources import (
    CHILDREN,
    FINETUNEJOBS,
    INFERENCESERVICES,
    OWNERS,
    PODS,
    Key,
    Object,
    Resource,
    has_observed_status,
)
from hone_operator.observability.metrics import JobMeter
from hone_operator.reconcile.coverage import Coverage

_BY_SERVER = ("resourceVersion", "managedFields")

logger = logging.getLogger(__name__)


class WatchHandlers:
    """The receiver of all lists and watch events. Until `is_started` is set it fills the cache, and queues nothing.

    `on_past` is called when the cluster is older than the cache, which is useless then.
    """

    def __init__(self, cache: Cache, queue: WorkQueue, meter: JobMeter, coverage: Coverage) -> None:
        self._cache = cache
        self._queue = queue
        self._meter = meter
        self._coverage = coverage
        self.synced = asyncio.Event()
        self.is_started = False
        self.on_past: Callable[[str], None] = logger.error

    def on_relist(self, resource: Resource, namespace: str, uids: set[str], version: int) -> None:
        """Take note of a complete list: known objects that it lacks are gone, although no watch reported that."""
        if self._cache.is_newer_than(resource, namespace, version):
            self.on_past(f"{resource.plural} are older than before: the cluster was restored from a backup")
        for body in self._cache.keep_only(resource, namespace, uids, version):
            self.on_deleted(resource, body)
        if self._coverage.mark_listed(resource, namespace) and self.is_started:
            self.enqueue_all(namespace)
        self._note_coverage()

    def on_relist_refused(self, resource: Resource, namespace: str, why: str) -> None:
        """Take note of a refused list: objects that need it wait, and all others are still worked on."""
        self._coverage.mark_refused(resource, namespace, why)
        self._note_coverage()

    def _note_coverage(self) -> None:
        if self._coverage.is_sufficient:
            self.synced.set()

    def on_upsert(self, resource: Resource, body: Object) -> None:
        """Take note of a new or changed object."""
        known = self._in_work(resource, body)
        if self.keep(resource, body) and (known is None or strip_status(known) != strip_status(body)):
            self._enqueue_concerned(resource, body)

    def on_delete(self, resource: Resource, body: Object) -> None:
        """Take note of a deleted object."""
        self._cache.remove(resource, body)
        self.on_deleted(resource, body)

    def _in_work(self, resource: Resource, body: Object) -> Object | None:
        """Return the known version of an object that a worker has: it alone writes the status meanwhile."""
        key = Key(resource, body["metadata"].get("namespace", ""), body["metadata"]["name"])
        return self._cache.get(resource, key.namespace, key.name) if self._queue.is_working(key) else None

    def on_poll_result(self, key: Key) -> None:
        """Queue the owner of a pod that gave a new answer. For a trainer, its progress is enough."""
        self._queue.add(key, scope=Scope.PROGRESS if key.resource == FINETUNEJOBS else Scope.FULL)

    def keep(self, resource: Resource, body: Object) -> bool:
        """Cache an object. Return whether this changed the cache."""
        changed = self._cache.put(resource, body)
        if changed and resource == FINETUNEJOBS:
            self._meter.on_upsert(body)
        return changed

    def on_deleted(self, resource: Resource, body: Object) -> None:
        """Take note that an object is no longer in the cache."""
        if resource == FINETUNEJOBS:
            self._meter.on_delete(body)
        self._enqueue_concerned(resource, body)

    def _enqueue_concerned(self, resource: Resource, body: Object) -> None:
        """Queue the objects that the change may concern. Before the start none: the start queues all objects."""
        if not self.is_started:
            return
        if resource in CHILDREN:
            owner = find_owner_key(resource, body)
            if owner and self._cache.has(owner):
                if resource == PODS and (seconds := self._cache.find_pods_delay(owner)):
                    self._queue.add_after(owner, seconds)
                else:
                    self._queue.add(owner)
            return
        self.enqueue_dependents(self._enqueue(resource, body))

    def enqueue_all(self, namespace: str = "") -> None:
        """Queue all owners of a namespace, or ("") of all: unfinished ones first."""
        for resource in OWNERS:
            for key in self._cache.list_keys(resource):
                if namespace in ("", key.namespace):
                    self._queue.add(key, urgent=not self._cache.is_finished(key))

    def _enqueue(self, resource: Resource, owner: Object) -> Key:
        key = Key(resource, owner["metadata"]["namespace"], owner["metadata"]["name"])
        self._queue.add(key, urgent=not has_observed_status(owner))
        return key

    def enqueue_dependents(self, key: Key) -> None:
        """Queue the InferenceServices that name a FineTuneJob."""
        if key.resource != FINETUNEJOBS:
            return
        for service in self._cache.list_objects(INFERENCESERVICES, key.namespace):
            if key.name in list_named_jobs(service):
                self._queue.add(Key(INFERENCESERVICES, key.namespace, service["metadata"]["name"]))


def strip_status(owner: Object) -> Object:
    """Return the parts of an object that others decide: all but the status and what the API server sets."""
    metadata = {name: value for name, value in owner["metadata"].items() if name not in _BY_SERVER}
    return {"metadata": metadata, "spec": owner.get("spec")}
