"""The reconcile loop: workers take keys from the queue, and each pass brings one object up to date.

In: changes of objects, which reflector.py reports to `saw`, `gone` and `listed`, and answers of pods, which
pod_poller.py reports. A pass observes (snapshots.py), plans (finetunejob/plan.py or inferenceservice/plan.py, both
pure), carries out the plan's actions (reconcile/execution.py), and writes the status once, if it changed. What the
process remembers can be lost at any moment: a new one decides the same from what the API server has.
"""

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime

import aiohttp
from hone_api.reasons import API_FAILING, OPERATOR_ERROR, HoneError

from hone_operator.finetunejob import plan as finetunejob_plan
from hone_operator.finetunejob import status as finetunejob_status
from hone_operator.finetunejob.snapshot import ObservedFineTuneJob
from hone_operator.inferenceservice import plan as inferenceservice_plan
from hone_operator.inferenceservice.dependents import named_jobs
from hone_operator.inferenceservice.snapshot import ObservedInferenceService
from hone_operator.kube.cache import Cache
from hone_operator.kube.client import Api, ApiError, NotLeading
from hone_operator.kube.pod_poller import Poller
from hone_operator.kube.workqueue import WorkQueue
from hone_operator.objects.owners import owner_key
from hone_operator.objects.resources import (
    CHILDREN,
    FINETUNEJOBS,
    INFERENCESERVICES,
    OWNERS,
    PODS,
    Key,
    Object,
    Resource,
    is_observed,
    merge_patch,
)
from hone_operator.observability import logs
from hone_operator.observability.health import why_stuck
from hone_operator.observability.metrics import JobMeter, Metrics
from hone_operator.pods.pod_spec import Images
from hone_operator.reconcile.coverage import Coverage
from hone_operator.reconcile.event_writer import write_event
from hone_operator.reconcile.execution import Executor, refresh
from hone_operator.reconcile.ownership import bind
from hone_operator.reconcile.plan import Event, Plan
from hone_operator.reconcile.sync_failures import (
    TRIES,
    Trouble,
    Troubles,
    crowded,
    describe,
    hidden,
    troubles_alone,
    unread,
)
from hone_operator.snapshots import Observer

WORKERS = 8
RESYNC_SECONDS = 600.0
_BY_SERVER = ("resourceVersion", "managedFields")
LOOK_AT_NODES_SECONDS = 6.0
UNREAD_SECONDS = 60.0
# Names under which failures are counted that are not writes of children.
READ, STATUS = "read", "status"

Observed = ObservedFineTuneJob | ObservedInferenceService

logger = logging.getLogger(__name__)


class Controller:
    """The operator's state while it runs: cache, work queue, workers. None of it has to survive a restart."""

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
        self.executor = Executor(api, self.cache, self.observer.upgrading)
        self._unwritten = Troubles()
        self.on_past: Callable[[str], None] = logger.error
        self.synced = asyncio.Event()
        self.coverage = Coverage(namespaces)
        metrics.watch_coverage(self.coverage.unreadable)
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Start the workers, once all lists have come: no decision is made on a part of what exists."""
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
                except Exception as error:
                    logger.exception("again in %.1f s", self.queue.retry(key))
                    await self._report_error(key, error)
                finally:
                    self.queue.done(key)
            self._metrics.reconciles.labels(controller, result).inc()
            if result == "error":
                self._metrics.reconcile_errors.labels(controller).inc()

    def why_stuck(self) -> str | None:
        """Return why no pass ends although some should; None while all is well."""
        return why_stuck(*self.queue.ages())

    async def reconcile(self, key: Key) -> str:
        """Make one pass over one object. Return its result as the metrics name it.

        Raises ApiError, aiohttp.ClientError or TimeoutError when a part of it failed.
        """
        owner = self.cache.get(key.resource, key.namespace, key.name)
        if owner is None:
            self.queue.forget(key)
            self.executor.forget(key)
            self.observer.forget(key)
            self._unwritten.forget(key)
            self.poller.want(key, {})
            return "success"
        now = datetime.now(UTC)
        if lacking := self.coverage.lacking(key):
            await self._write_status(key, owner, troubles_alone(owner, now, [lacking]) if lacking.is_known else None)
            self.queue.add_after(key, UNREAD_SECONDS)
            return "requeue_after"
        if (crowd := crowded(key, owner, self.cache.unknown_pods(key))) and crowd.stops_pods:
            await self._write_status(key, owner, troubles_alone(owner, now, [crowd]))
            self.queue.add_after(key, UNREAD_SECONDS)
            return "requeue_after"
        if not self.queue.wants_whole(key) and await self._tell_progress(key, owner, now):
            return "success"
        observed = await self._observe(key, owner, now)
        observed.troubles = hidden(observed.found, owner) + ([crowd] if crowd else [])
        plan = decide(observed, now)
        actions = [bind(action, observed.found) for action in plan.actions]
        spec = owner["metadata"]["uid"], owner["metadata"].get("generation") or 0
        outcome = await self.executor.carry_out(key, spec, actions)
        if outcome.is_farewell:
            return "success"
        self.observer.remembered.settle(key, plan.settled)
        if outcome.is_undecided:
            self.observer.remembered.doubt_claim(key)
        if outcome.has_news and not outcome.error and not outcome.troubles:
            if isinstance(observed, ObservedFineTuneJob):
                made = self.observer.see_made(observed, plan)
                self.observer.remembered.settle(key, finetunejob_plan.settle(made, plan, now))
            # The children of all waiting objects come first; a later pass reports in the status what came of them.
            self.queue.add(key)
            return "requeue"
        self.poller.want(key, plan.poll)
        if outcome.troubles:
            observed.troubles += outcome.troubles
            plan = decide(observed, now)
        await self._write_status(key, owner, plan)
        if outcome.error:
            raise outcome.error
        waits = [seconds for seconds in (plan.requeue_after, outcome.wait_seconds) if seconds is not None]
        if not waits:
            return "success"
        self.queue.add_after(key, min(waits))
        return "requeue_after"

    async def _report_error(self, key: Key, error: Exception) -> None:
        """Report a bug of the operator in the object's status, if that status can be written."""
        owner = self.cache.get(key.resource, key.namespace, key.name)
        if owner is not None:
            found = Trouble(HoneError(OPERATOR_ERROR, f"The operator fails: {error!r:.300}"))
            try:
                await self._write_status(key, owner, troubles_alone(owner, datetime.now(UTC), [found]))
            except Exception as failure:  # the worker continues after any failure
                logger.warning("the error was not reported: %r", failure)

    async def _observe(self, key: Key, owner: Object, now: datetime) -> Observed:
        """Read the snapshot that the plan is made from. A failure that lasts is reported in the object's status."""
        try:
            if key.resource == FINETUNEJOBS:
                observed: Observed = await self.observer.finetunejob(key, owner, now)
            else:
                observed = await self.observer.inferenceservice(key, owner, now)
        except (ApiError, aiohttp.ClientError, TimeoutError) as error:
            counted = self.executor.troubles.count(key, [READ])[READ]
            if found := unread(error, counted):
                await self._write_status(key, owner, troubles_alone(owner, now, [found]))
            raise
        return observed

    async def _tell_progress(self, key: Key, owner: Object, now: datetime) -> bool:
        """Write only the reported progress where a full pass would change nothing else.

        Return whether that was enough.
        """
        reports = list(self.observer.reports(key).values())
        if len(reports) != 1:
            return False
        changes = finetunejob_status.progress_alone(owner, reports[0], self.observer.trainers(key), now)
        if changes is None:
            return False
        if changes:
            await self._patch_status(key, owner, changes)
        return True

    async def _write_status(self, key: Key, owner: Object, plan: Plan | None) -> None:
        if plan is None:
            return
        changes = merge_patch(owner.get("status") or {}, plan.status)
        try:
            is_written = bool(changes) and await self._patch_status(key, owner, changes)
        except ApiError as error:
            await self._tell_unwritten(key, owner, error)
            raise
        self._unwritten.forget(key)
        if not is_written:
            return
        self._queue_dependents(key)
        for event in plan.events:
            logger.info("%s", event.message, extra={"reason": event.reason})
            await write_event(self.api, key, owner, event)

    async def _tell_unwritten(self, key: Key, owner: Object, error: ApiError) -> None:
        """Report by an event that the status can't be written: there is no other place to report it."""
        counted = self._unwritten.count(key, [STATUS])[STATUS]
        if counted == (1 if error.is_refusal else TRIES) and not error.is_farewell:
            words = HoneError(API_FAILING, f"The status can't be written: {describe(error)}").sentence()
            await write_event(self.api, key, owner, Event("Warning", API_FAILING.name, words))

    async def _patch_status(self, key: Key, owner: Object, changes: Object) -> bool:
        """Write changes of the status. `owner`: the object on which they were decided. Return whether it was written.

        In a patch of a status the API server ignores the uid, so the patch is bound to the resourceVersion.
        """
        metadata = {name: owner["metadata"][name] for name in ("uid", "resourceVersion")}
        try:
            written = await self.api.patch(
                key.resource, key.namespace, key.name, {"metadata": metadata, "status": changes}, subresource="status"
            )
        except ApiError as error:
            if error.status not in (404, 409):
                raise
            found = await refresh(self.api, self.cache, key.resource, key.namespace, key.name)
            if found is not None and found["metadata"]["resourceVersion"] == metadata["resourceVersion"]:
                raise
            if found is None or found["metadata"]["uid"] != metadata["uid"]:
                self._left(key.resource, owner)
            self.queue.add(key)  # the decision was about an earlier version of the object
            return False
        self._keep(key.resource, written)
        if asked(written) != asked(owner):  # the cache has this version now, so the watch will not queue it
            self.queue.add(key)
        return True

    async def _look_at_all(self) -> None:
        """Queue every object, at first and every RESYNC_SECONDS: not everything that concerns it is watched."""
        while True:
            self._add_all("")
            await asyncio.sleep(RESYNC_SECONDS)

    def _add_all(self, namespace: str) -> None:
        for resource in OWNERS:
            for key in self.cache.keys(resource):
                if namespace in ("", key.namespace):
                    self.queue.add(key, urgent=not self.cache.is_finished(key))

    async def _look_at_nodes(self) -> None:
        """Queue the services with engines on a newly cordoned node: its drain waits for single engines to move."""
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
                owner = owner_key(PODS, pod)
                if owner and owner.resource == INFERENCESERVICES and pod["spec"].get("nodeName") in cordoned - known:
                    self.queue.add(owner)
            known = cordoned

    def listed(self, resource: Resource, namespace: str, uids: set[str], version: int) -> None:
        """Take note of a complete list: known objects that it lacks are gone, although no watch reported that."""
        if self.cache.is_newer_than(resource, namespace, version):
            self.on_past(f"{resource.plural} are older than before: the cluster was restored from a backup")
        for body in self.cache.keep_only(resource, namespace, uids, version):
            self._left(resource, body)
        if self.coverage.listed(resource, namespace) and self._tasks:
            self._add_all(namespace)
        self._note_coverage()

    def unlisted(self, resource: Resource, namespace: str, why: str) -> None:
        """Take note of a refused list: objects that need it wait, and all others are still worked on."""
        self.coverage.refused(resource, namespace, why)
        self._note_coverage()

    def _note_coverage(self) -> None:
        if self.coverage.is_sufficient:
            self.synced.set()

    def saw(self, resource: Resource, body: Object) -> None:
        """Take note of a new or changed object."""
        known = self._in_work(resource, body)
        if self._keep(resource, body) and (known is None or asked(known) != asked(body)):
            self._changed(resource, body)

    def gone(self, resource: Resource, body: Object) -> None:
        """Take note of a deleted object."""
        self.cache.remove(resource, body)
        self._left(resource, body)

    def _in_work(self, resource: Resource, body: Object) -> Object | None:
        """Return the known version of an object that a worker has: it alone writes the status meanwhile."""
        key = Key(resource, body["metadata"].get("namespace", ""), body["metadata"]["name"])
        return self.cache.get(resource, key.namespace, key.name) if self.queue.is_working(key) else None

    def _heard(self, key: Key) -> None:
        """Queue the owner of a pod that gave a new answer. For a trainer, a pass over its progress is enough."""
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
        """Queue the objects that the change may concern. Before the start none: the start queues all objects."""
        if not self._tasks:
            return
        if resource in CHILDREN:
            owner = owner_key(resource, body)
            if owner and self.cache.has(owner):
                self.queue.add(owner)
            return
        self._queue_dependents(self._queue(resource, body))

    def _queue(self, resource: Resource, owner: Object) -> Key:
        key = Key(resource, owner["metadata"]["namespace"], owner["metadata"]["name"])
        self.queue.add(key, urgent=not is_observed(owner))
        return key

    def _queue_dependents(self, key: Key) -> None:
        """Queue the InferenceServices that name a FineTuneJob."""
        if key.resource != FINETUNEJOBS:
            return
        for service in self.cache.all(INFERENCESERVICES, key.namespace):
            if key.name in named_jobs(service):
                self.queue.add(Key(INFERENCESERVICES, key.namespace, service["metadata"]["name"]))


def decide(observed: Observed, now: datetime) -> Plan:
    """Return the plan for an object of either kind."""
    if isinstance(observed, ObservedFineTuneJob):
        return finetunejob_plan.plan(observed, now)
    return inferenceservice_plan.plan(observed, now)


def asked(owner: Object) -> Object:
    """Return the parts of an object that others decide: all but the status and what the API server sets."""
    metadata = {name: value for name, value in owner["metadata"].items() if name not in _BY_SERVER}
    return {"metadata": metadata, "spec": owner.get("spec")}
