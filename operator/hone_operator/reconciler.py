"""One reconcile: bring one FineTuneJob or InferenceService up to date.

It observes (snapshots.py), plans (finetunejob/plan.py or inferenceservice/plan.py, both pure), executes the plan's
actions (reconcile/execution.py), and writes the status once, if it changed. In: a key from controller.py. Out: the
result as the metrics name it.
"""

import logging
from datetime import UTC, datetime

import aiohttp
from hone_api.reasons import API_FAILING, OPERATOR_ERROR, HoneError

from hone_operator.finetunejob import plan as finetunejob_plan
from hone_operator.finetunejob import status as finetunejob_status
from hone_operator.finetunejob.snapshot import ObservedFineTuneJob
from hone_operator.inferenceservice import plan as inferenceservice_plan
from hone_operator.inferenceservice.snapshot import ObservedInferenceService
from hone_operator.kube.cache import Cache
from hone_operator.kube.client import Api, ApiError
from hone_operator.kube.pod_poller import Poller
from hone_operator.kube.workqueue import WorkQueue
from hone_operator.objects.resources import (
    FINETUNEJOBS,
    Key,
    Object,
    build_merge_patch,
)
from hone_operator.reconcile.coverage import Coverage
from hone_operator.reconcile.event_writer import write_event
from hone_operator.reconcile.execution import Executor, refresh_cached
from hone_operator.reconcile.ownership import bind_to_uid
from hone_operator.reconcile.plan import Event, Plan
from hone_operator.reconcile.sync_failures import (
    REPORTED_AFTER_FAILURES,
    FailureCounts,
    SyncFailure,
    describe_error,
    explain_pod_limit,
    explain_read_failure,
    find_hidden_children,
    plan_failure_report,
)
from hone_operator.snapshots.reader import SnapshotReader
from hone_operator.watch_handlers import WatchHandlers, strip_status

UNREAD_SECONDS = 60.0
# Names under which failures are counted that are not writes of children.
READ, STATUS = "read", "status"

Observed = ObservedFineTuneJob | ObservedInferenceService

logger = logging.getLogger(__name__)


class Reconciler:
    """Reconciles objects, one at a time in each worker. What it remembers can be lost at any moment."""

    def __init__(
        self,
        api: Api,
        cache: Cache,
        queue: WorkQueue,
        poller: Poller,
        observer: SnapshotReader,
        handlers: WatchHandlers,
        executor: Executor,
        coverage: Coverage,
    ) -> None:
        self._api = api
        self._cache = cache
        self._queue = queue
        self._poller = poller
        self._observer = observer
        self._handlers = handlers
        self._executor = executor
        self._coverage = coverage
        self._unwritten = FailureCounts()

    async def reconcile(self, key: Key) -> str:
        """Reconcile one object. Return the result as the metrics name it.

        Raises ApiError, aiohttp.ClientError or TimeoutError when a part of it failed.
        """
        owner = self._cache.get(key.resource, key.namespace, key.name)
        if owner is None:
            self._queue.forget(key)
            self._executor.forget(key)
            self._observer.forget(key)
            self._unwritten.forget(key)
            self._poller.want(key, {})
            return "success"
        now = datetime.now(UTC)
        if lacking := self._coverage.find_missing_list(key):
            await self.write_status(
                key, owner, plan_failure_report(owner, now, [lacking]) if lacking.is_owner_listed else None
            )
            self._queue.add_after(key, UNREAD_SECONDS)
            return "requeue_after"
        if (crowd := explain_pod_limit(key, owner, self._cache.count_unknown_pods(key))) and crowd.stops_pods:
            await self.write_status(key, owner, plan_failure_report(owner, now, [crowd]))
            self._queue.add_after(key, UNREAD_SECONDS)
            return "requeue_after"
        if not self._queue.needs_full(key) and await self._write_progress_only(key, owner, now):
            return "success"
        observed = await self._observe(key, owner, now)
        observed.sync_failures = find_hidden_children(observed.changeable, owner) + ([crowd] if crowd else [])
        plan = make_plan(observed, now)
        actions = [bind_to_uid(action, observed.changeable) for action in plan.actions]
        spec = owner["metadata"]["uid"], owner["metadata"].get("generation") or 0
        outcome = await self._executor.execute(key, spec, actions)
        if outcome.is_namespace_terminating:
            return "success"
        self._observer.job_memory.set_settled_digest(key, plan.settled_digest)
        if outcome.is_undecided:
            self._observer.job_memory.doubt_claim(key)
        if outcome.has_changes and not outcome.error and not outcome.sync_failures:
            if isinstance(observed, ObservedFineTuneJob):
                made = self._observer.add_created(observed, plan)
                self._observer.job_memory.set_settled_digest(
                    key, finetunejob_plan.compute_settled_digest(made, plan, now)
                )
            # The children of all waiting objects come first; a later reconcile reports in the status what came of them.
            self._queue.add(key)
            return "requeue"
        self._poller.want(key, plan.poll_urls)
        if outcome.sync_failures:
            observed.sync_failures += outcome.sync_failures
            plan = make_plan(observed, now)
        await self.write_status(key, owner, plan)
        if outcome.error:
            raise outcome.error
        waits = [seconds for seconds in (plan.requeue_after_seconds, outcome.wait_seconds) if seconds is not None]
        if not waits:
            return "success"
        self._queue.add_after(key, min(waits))
        return "requeue_after"

    async def report_error(self, key: Key, error: Exception) -> None:
        """Report a bug of the operator in the object's status, if that status can be written."""
        owner = self._cache.get(key.resource, key.namespace, key.name)
        if owner is not None:
            found = SyncFailure(HoneError(OPERATOR_ERROR, f"The operator fails: {error!r:.300}"))
            try:
                await self.write_status(key, owner, plan_failure_report(owner, datetime.now(UTC), [found]))
            except Exception as failure:  # the worker continues after any failure
                logger.warning("the error was not reported: %r", failure)

    async def _observe(self, key: Key, owner: Object, now: datetime) -> Observed:
        """Read the snapshot that the plan is made from. A failure that lasts is reported in the object's status."""
        try:
            if key.resource == FINETUNEJOBS:
                observed: Observed = await self._observer.read_finetunejob(key, owner, now)
            else:
                observed = await self._observer.read_inferenceservice(key, owner, now)
        except (ApiError, aiohttp.ClientError, TimeoutError) as error:
            counted = self._executor.failure_counts.count_failures(key, [READ])[READ]
            if found := explain_read_failure(error, counted):
                await self.write_status(key, owner, plan_failure_report(owner, now, [found]))
            raise
        return observed

    async def _write_progress_only(self, key: Key, owner: Object, now: datetime) -> bool:
        """Write only the reported progress where a full reconcile would change nothing else.

        Return whether that was enough.
        """
        reports = list(self._observer.get_reports(key).values())
        if len(reports) != 1:
            return False
        changes = finetunejob_status.build_progress_patch(owner, reports[0], self._observer.list_trainer_pods(key), now)
        if changes is None:
            return False
        if changes:
            await self.patch_status(key, owner, changes)
        return True

    async def write_status(self, key: Key, owner: Object, plan: Plan | None) -> None:
        """Write the plan's status, if it changes, and then the plan's events."""
        if plan is None:
            return
        changes = build_merge_patch(owner.get("status") or {}, plan.status)
        try:
            is_written = bool(changes) and await self.patch_status(key, owner, changes)
        except ApiError as error:
            await self._report_unwritten(key, owner, error)
            raise
        self._unwritten.forget(key)
        if not is_written:
            return
        self._handlers.enqueue_dependents(key)
        for event in plan.events:
            logger.info("%s", event.message, extra={"reason": event.reason})
            await write_event(self._api, key, owner, event)

    async def _report_unwritten(self, key: Key, owner: Object, error: ApiError) -> None:
        """Report by an event that the status can't be written: there is no other place to report it."""
        counted = self._unwritten.count_failures(key, [STATUS])[STATUS]
        if counted == (1 if error.is_refusal else REPORTED_AFTER_FAILURES) and not error.is_farewell:
            message = HoneError(API_FAILING, f"The status can't be written: {describe_error(error)}").format_message()
            await write_event(self._api, key, owner, Event("Warning", API_FAILING.name, message))

    async def patch_status(self, key: Key, owner: Object, changes: Object) -> bool:
        """Write changes of the status. `owner`: the object on which they were decided. Return whether it was written.

        In a patch of a status the API server ignores the uid, so the patch is bound to the resourceVersion.
        """
        metadata = {name: owner["metadata"][name] for name in ("uid", "resourceVersion")}
        try:
            written = await self._api.patch(
                key.resource, key.namespace, key.name, {"metadata": metadata, "status": changes}, subresource="status"
            )
        except ApiError as error:
            if error.status not in (404, 409):
                raise
            found = await refresh_cached(self._api, self._cache, key.resource, key.namespace, key.name)
            if found is not None and found["metadata"]["resourceVersion"] == metadata["resourceVersion"]:
                raise
            if found is None or found["metadata"]["uid"] != metadata["uid"]:
                self._handlers.on_deleted(key.resource, owner)
            self._queue.add(key)  # the decision was about an earlier version of the object
            return False
        self._handlers.keep(key.resource, written)
        if strip_status(written) != strip_status(owner):
            self._queue.add(key)  # the cache has this version now, so the watch will not queue it
        return True


def make_plan(observed: Observed, now: datetime) -> Plan:
    """Return the plan for an object of either kind."""
    if isinstance(observed, ObservedFineTuneJob):
        return finetunejob_plan.plan_finetunejob(observed, now)
    return inferenceservice_plan.plan_inferenceservice(observed, now)
