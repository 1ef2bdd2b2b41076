"""The workers: observe, plan, carry out, write the status once if it changed."""

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime

import aiohttp

from hone_operator import finetunejob, inferenceservice, logs, stages
from hone_operator.api import Api, ApiError, NotLeading
from hone_operator.cache import Cache, owner_key
from hone_operator.conditions import timestamp
from hone_operator.health import why_stuck
from hone_operator.metrics import JobMeter, Metrics
from hone_operator.observe import Observer
from hone_operator.plan import Action, Apply, Create, Delete, Event, Patch, Plan
from hone_operator.podspec import Images
from hone_operator.polling import Poller
from hone_operator.resources import (
    CHILDREN,
    EVENTS,
    FINETUNEJOBS,
    INFERENCESERVICES,
    OWNERS,
    PODS,
    WATCHED,
    Key,
    Object,
    Resource,
    is_observed,
    merge_patch,
)
from hone_operator.workqueue import WorkQueue

WORKERS = 8
RESYNC_SECONDS = 600.0
_BY_SERVER = ("resourceVersion", "managedFields")
LOOK_AT_NODES_SECONDS = 6.0

logger = logging.getLogger(__name__)


class Controller:
    """Everything that the operator holds while it runs; all of it can be lost at any moment."""

    def __init__(
        self, api: Api, images: Images, namespaces: list[str], metrics: Metrics, leads: Callable[[], bool]
    ) -> None:
        self.api = api
        self.cache = Cache()
        self.queue = WorkQueue(metrics)
        self._metrics = metrics
        self._meter = JobMeter(metrics, leads)
        metrics.watch_objects(leads, self._meter.jobs, lambda: self.cache.all(INFERENCESERVICES))
        self.poller = Poller(self._heard)
        self.observer = Observer(api, self.cache, self.poller, images)
        self.synced = asyncio.Event()
        self._unlisted = {(resource, namespace) for resource in WATCHED for namespace in namespaces or [""]}
        self._tasks: list[asyncio.Task[None]] = []
        self._turn = asyncio.Lock()

    async def start(self) -> None:
        """Begin to work, once all that exists has been seen: nothing is decided on half of it."""
        await self.synced.wait()
        self._tasks = [asyncio.create_task(self._work()) for _ in range(WORKERS)]
        self._tasks.append(asyncio.create_task(self._look_at_all()))
        self._tasks.append(asyncio.create_task(self._look_at_nodes()))

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.poller.close()
        await self.api.close()

    async def _work(self) -> None:
        while True:
            key = await self.queue.get()
            controller = key.resource.kind.lower()
            result = "error"
            with logs.passing(key), self._metrics.reconcile_time.labels(controller).time():
                try:
                    result = await self.reconcile(key)
                    self.queue.succeeded(key)
                except ApiError as error:
                    logger.warning("%s; again in %.1f s", error, self.queue.retry(key, error.retry_after))
                except (aiohttp.ClientError, TimeoutError, NotLeading) as error:
                    logger.warning("%r; again in %.1f s", error, self.queue.retry(key))
                except Exception:
                    logger.exception("again in %.1f s", self.queue.retry(key))
                finally:
                    self.queue.done(key)
            self._metrics.reconciles.labels(controller, result).inc()
            if result == "error":
                self._metrics.reconcile_errors.labels(controller).inc()

    def why_stuck(self) -> str | None:
        """Why no pass ends, though some should."""
        return why_stuck(*self.queue.ages())

    async def reconcile(self, key: Key) -> str:
        """One pass over one object. Returns its result as metrics have it. Raises ApiError at a refusal."""
        owner = self.cache.get(key.resource, key.namespace, key.name)
        if owner is None:
            self.queue.forget(key)
            self.poller.want(key, {})
            return "success"
        now = datetime.now(UTC)
        if not self.queue.wants_whole(key) and await self._tell_progress(key, owner, now):
            return "success"
        plan = await self._plan(key, owner, now, refusal=None)
        try:
            news = await self._carry_out(key, plan)
        except ApiError as error:
            if error.is_farewell:
                return "success"
            if error.is_refusal:
                await self._write_status(key, owner, await self._plan(key, owner, now, refusal=error.message))
            raise
        if news:
            # Children first, for all objects that wait; the status tells what is seen afterwards.
            self.queue.add(key)
            return "requeue"
        await self._write_status(key, owner, plan)
        self.poller.want(key, plan.poll)
        if plan.requeue_after is None:
            return "success"
        self.queue.add_after(key, plan.requeue_after)
        return "requeue_after"

    async def _plan(self, key: Key, owner: Object, now: datetime, *, refusal: str | None) -> Plan:
        if key.resource == FINETUNEJOBS:
            job = await self.observer.finetunejob(key, owner, now)
            job.refusal = refusal
            return finetunejob.plan(job, now)
        service = await self.observer.inferenceservice(key, owner, now)
        service.refusal = refusal
        return inferenceservice.plan(service, now)

    async def _carry_out(self, key: Key, plan: Plan) -> bool:
        """All actions at once. Returns whether there is something new, that the plan could not know of."""
        results = await asyncio.gather(*(self._act(key, action) for action in plan.actions), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        return any(results)

    async def _act(self, key: Key, action: Action) -> bool:
        if isinstance(action, Delete):
            await self.api.delete(action.resource, key.namespace, action.name, action.uid)
            return False
        name = action.name if isinstance(action, Patch) else action.body["metadata"]["name"]
        target = Key(action.resource, key.namespace, name)
        before = self.cache.version(target)
        if isinstance(action, Create):
            found = await self._create(action)
        elif isinstance(action, Apply) and action.in_turn:
            return await self._apply_in_turn(key, action)
        elif isinstance(action, Apply):
            found = await self.api.apply(action.resource, action.body)
        else:
            try:
                found = await self.api.patch(action.resource, key.namespace, action.name, action.patch)
            except ApiError as error:
                if error.status != 404:
                    raise
                return False  # deleted meanwhile, as the watch will tell
        self.cache.put(action.resource, found)
        return self.cache.version(target) != before  # the watch may have told of it before the answer came

    async def _apply_in_turn(self, key: Key, action: Apply) -> bool:
        """Two passes at a time may have planned to begin: the second is planned again."""
        async with self._turn:
            if self.observer.upgrading(key):
                return True
            self.cache.put(action.resource, await self.api.apply(action.resource, action.body))
        return True

    async def _create(self, action: Create) -> Object:
        """The new object, or the one that has its name already: the next pass judges it."""
        try:
            return await self.api.create(action.resource, action.body)
        except ApiError as error:
            if error.status != 409:
                raise
            metadata = action.body["metadata"]
            found = await self.api.get(action.resource, metadata["namespace"], metadata["name"])
            if found is None:  # not its name: a quota that somebody else changed at the same time also conflicts
                raise
            return found

    async def _tell_progress(self, key: Key, owner: Object, now: datetime) -> bool:
        """What trainers report is taken up without a whole pass, where that would do no more. Returns whether it is."""
        reports = list(self.observer.reports(key).values())
        if len(reports) != 1:
            return False
        changes = stages.progress_alone(owner, reports[0], self.observer.trainers(key), now)
        if changes is None:
            return False
        if changes:
            await self._patch_status(key, owner, changes)
        return True

    async def _write_status(self, key: Key, owner: Object, plan: Plan) -> None:
        changes = merge_patch(owner.get("status") or {}, plan.status)
        if not changes or not await self._patch_status(key, owner, changes):
            return
        self._queue_dependents(key)
        for event in plan.events:
            logger.info("%s", event.message, extra={"reason": event.reason})
            await self._emit(key, owner, event)

    async def _patch_status(self, key: Key, owner: Object, changes: Object) -> bool:
        """Returns whether the object is still there. `owner`: as it was when the changes were decided."""
        try:
            written = await self.api.patch(
                key.resource, key.namespace, key.name, {"status": changes}, subresource="status"
            )
        except ApiError as error:
            if error.status == 404:
                return False
            raise
        self._keep(key.resource, written)
        if asked(written) != asked(owner):  # the watch may tell of it when this answer is no news any more
            self.queue.add(key)
        return True

    async def _emit(self, key: Key, owner: Object, event: Event) -> None:
        now = datetime.now(UTC)
        metadata = owner["metadata"]
        body: Object = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"generateName": f"{key.name}.", "namespace": key.namespace},
            "involvedObject": {
                "apiVersion": owner["apiVersion"],
                "kind": owner["kind"],
                "namespace": key.namespace,
                "name": key.name,
                "uid": metadata["uid"],
            },
            "type": event.type,
            "reason": event.reason,
            "message": event.message,
            "source": {"component": "hone-operator"},
            "firstTimestamp": timestamp(now),
            "lastTimestamp": timestamp(now),
            "count": 1,
        }
        try:
            await self.api.create(EVENTS, body)
        except ApiError as error:
            if error.is_farewell:
                return
            logger.warning("event was not written: %s", error, extra={"reason": event.reason})

    async def _look_at_all(self) -> None:
        """Every object gets a pass, at first and every RESYNC_SECONDS: not all that concerns it is watched."""
        while True:
            for resource in OWNERS:
                for key in self.cache.keys(resource):
                    self.queue.add(key, urgent=not self.cache.is_finished(key))
            await asyncio.sleep(RESYNC_SECONDS)

    async def _look_at_nodes(self) -> None:
        """The engines of a node that was cordoned get a pass: its drain waits for those that are alone."""
        known: frozenset[str] = frozenset()
        while True:
            await asyncio.sleep(LOOK_AT_NODES_SECONDS)
            if not self.cache.all(INFERENCESERVICES):
                continue
            try:
                cordoned = await self.observer.cordoned() or frozenset()
            except (ApiError, aiohttp.ClientError, TimeoutError) as error:
                logger.warning("cordoned nodes: %r", error)
                continue
            for pod in self.cache.all(PODS) if cordoned - known else ():
                owner = owner_key(pod)
                if owner and owner.resource == INFERENCESERVICES and pod["spec"].get("nodeName") in cordoned - known:
                    self.queue.add(owner)
            known = cordoned

    def listed(self, resource: Resource, namespace: str, uids: set[str], version: int) -> None:
        """A list is complete: what it did not have is gone, though no watch told of it."""
        for body in self.cache.keep_only(resource, namespace, uids, version):
            self._left(resource, body)
        self._unlisted.discard((resource, namespace))
        if not self._unlisted:
            self.synced.set()

    def saw(self, resource: Resource, body: Object) -> None:
        """An object is there, new or changed."""
        known = self._in_work(resource, body)
        if self._keep(resource, body) and (known is None or asked(known) != asked(body)):
            self._changed(resource, body)

    def gone(self, resource: Resource, body: Object) -> None:
        """An object was deleted."""
        self.cache.remove(resource, body)
        self._left(resource, body)

    def _in_work(self, resource: Resource, body: Object) -> Object | None:
        """The known version of an object that a worker has: a change of its status alone is that worker's own."""
        key = Key(resource, body["metadata"].get("namespace", ""), body["metadata"]["name"])
        return self.cache.get(resource, key.namespace, key.name) if self.queue.is_working(key) else None

    def _heard(self, key: Key) -> None:
        """A pod has answered, and otherwise than before."""
        self.queue.add(key, whole=key.resource != FINETUNEJOBS)

    def _keep(self, resource: Resource, body: Object) -> bool:
        news = self.cache.put(resource, body)
        if news and resource == FINETUNEJOBS:
            self._meter.saw(body)
        return news

    def _left(self, resource: Resource, body: Object) -> None:
        if resource == FINETUNEJOBS:
            self._meter.gone(body)
        self._changed(resource, body)

    def _changed(self, resource: Resource, body: Object) -> None:
        """Queue whatever the change may concern. Before the start, nothing: the start looks at all there is."""
        if not self._tasks:
            return
        if resource in CHILDREN:
            owner = owner_key(body)
            if owner and self.cache.has(owner):
                self.queue.add(owner)
            return
        self._queue_dependents(self._queue(resource, body))

    def _queue(self, resource: Resource, owner: Object) -> Key:
        key = Key(resource, owner["metadata"]["namespace"], owner["metadata"]["name"])
        self.queue.add(key, urgent=not is_observed(owner))
        return key

    def _queue_dependents(self, key: Key) -> None:
        """The InferenceServices that name a FineTuneJob."""
        if key.resource != FINETUNEJOBS:
            return
        for service in self.cache.all(INFERENCESERVICES, key.namespace):
            if key.name in named_jobs(service):
                self.queue.add(Key(INFERENCESERVICES, key.namespace, service["metadata"]["name"]))


def asked(owner: Object) -> Object:
    """What of an object others decide: all but the status."""
    metadata = {name: value for name, value in owner["metadata"].items() if name not in _BY_SERVER}
    return {"metadata": metadata, "spec": owner.get("spec")}


def named_jobs(service: Object) -> set[str]:
    """The FineTuneJobs that an InferenceService names, also one that breaks the contract."""
    spec = _mapping(service.get("spec"))
    adapters = spec.get("adapters")
    sources = [spec.get("model"), *(adapters if isinstance(adapters, list) else [])]
    names = (_mapping(_mapping(source).get("fineTuneJob")).get("name") for source in sources)
    return {name for name in names if isinstance(name, str)}


def _mapping(value: object) -> Object:
    return value if isinstance(value, dict) else {}
