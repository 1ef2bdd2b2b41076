"""The controller: workers take keys from the work queue, and each key's object is reconciled.

In: keys that watch_handlers.py and node_watch.py queue. What the process remembers can be lost at any moment: a new one
decides the same from what the API server has. Next: reconciler.py.
"""

import asyncio
import logging
from collections.abc import Callable

import aiohttp

from hone_operator.kube.cache import Cache
from hone_operator.kube.client import Api, ApiError, NotLeading
from hone_operator.kube.pod_poller import Poller
from hone_operator.kube.workqueue import WorkQueue
from hone_operator.node_watch import NodeWatch
from hone_operator.objects.resources import INFERENCESERVICES
from hone_operator.observability import logs
from hone_operator.observability.health import explain_stuck
from hone_operator.observability.metrics import JobMeter, Metrics
from hone_operator.pods.pod_spec import Images
from hone_operator.reconcile.coverage import Coverage
from hone_operator.reconcile.execution import Executor
from hone_operator.reconciler import Reconciler
from hone_operator.snapshots.reader import SnapshotReader
from hone_operator.watch_handlers import WatchHandlers

WORKERS = 8
RESYNC_SECONDS = 600.0

logger = logging.getLogger(__name__)


class Controller:
    """The operator's state while it runs: cache, work queue, workers. None of it has to survive a restart."""

    def __init__(
        self, api: Api, images: Images, namespaces: list[str], metrics: Metrics, is_leader: Callable[[], bool]
    ) -> None:
        self._api = api
        self._metrics = metrics
        self.cache = Cache()
        self.queue = WorkQueue(metrics)
        self.coverage = Coverage(namespaces)
        meter = JobMeter(metrics, is_leader)
        self.handlers = WatchHandlers(self.cache, self.queue, meter, self.coverage)
        self.poller = Poller(self.handlers.on_poll_result)
        observer = SnapshotReader(api, self.cache, self.poller, images)
        self.executor = Executor(api, self.cache, observer.list_upgrading)
        self.reconciler = Reconciler(
            api, self.cache, self.queue, self.poller, observer, self.handlers, self.executor, self.coverage
        )
        self._node_watch = NodeWatch(self.cache, self.queue, observer)
        metrics.watch_objects(is_leader, meter.list_jobs, lambda: self.cache.list_objects(INFERENCESERVICES))
        metrics.watch_coverage(self.coverage.list_refused)
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Start the workers, once all lists have come: no decision is made on a part of what exists."""
        await self.handlers.synced.wait()
        self.handlers.is_started = True
        self._tasks = [asyncio.create_task(self._work()) for _ in range(WORKERS)]
        self._tasks.append(asyncio.create_task(self._resync()))
        self._tasks.append(asyncio.create_task(self._node_watch.run()))

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.poller.close()
        await self._api.close()

    async def _work(self) -> None:
        while True:
            key = await self.queue.get()
            controller = key.resource.kind.lower()
            result = "error"
            with logs.reconcile_context(key), self._metrics.reconcile_time.labels(controller).time():
                try:
                    result = await self.reconciler.reconcile(key)
                    self.queue.reset_backoff(key)
                except ApiError as error:
                    logger.warning("%s; again in %.1f s", error, self.queue.retry(key, error.retry_after))
                except (aiohttp.ClientError, TimeoutError, NotLeading) as error:
                    logger.warning("%r; again in %.1f s", error, self.queue.retry(key))
                except Exception as error:
                    logger.exception("again in %.1f s", self.queue.retry(key))
                    await self.reconciler.report_error(key, error)
                finally:
                    self.queue.done(key)
            self._metrics.reconciles.labels(controller, result).inc()
            if result == "error":
                self._metrics.reconcile_errors.labels(controller).inc()

    async def _resync(self) -> None:
        """Queue every object, at first and every RESYNC_SECONDS: not everything that concerns it is watched."""
        while True:
            self.handlers.enqueue_all()
            await asyncio.sleep(RESYNC_SECONDS)

    def explain_stall(self) -> str | None:
        """Return why no reconcile ends although some should; None while all is well."""
        return explain_stuck(*self.queue.measure_ages())
