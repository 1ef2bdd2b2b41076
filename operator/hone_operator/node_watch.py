"""Look for newly cordoned nodes: the drain of a node waits for single engines to move to another one."""

import asyncio
import logging

import aiohttp

from hone_operator.kube.cache import Cache
from hone_operator.kube.client import ApiError
from hone_operator.kube.workqueue import WorkQueue
from hone_operator.objects.owners import find_owner_key
from hone_operator.objects.resources import INFERENCESERVICES, PODS
from hone_operator.snapshots.reader import SnapshotReader

EVERY_SECONDS = 6.0

logger = logging.getLogger(__name__)


class NodeWatch:
    """A regular look at the nodes, while there are InferenceServices."""

    def __init__(self, cache: Cache, queue: WorkQueue, observer: SnapshotReader) -> None:
        self._cache = cache
        self._queue = queue
        self._observer = observer

    async def run(self) -> None:
        """Queue the services with engines on a newly cordoned node. Ends only when cancelled."""
        known: frozenset[str] = frozenset()
        while True:
            await asyncio.sleep(EVERY_SECONDS)
            if not self._cache.list_objects(INFERENCESERVICES):
                continue
            try:
                cordoned = await self._observer.read_cordoned_nodes() or frozenset()
            except (ApiError, aiohttp.ClientError, TimeoutError) as error:
                logger.warning("cordoned nodes: %r", error)
                continue
            for pod in self._cache.list_objects(PODS) if cordoned - known else ():
                owner = find_owner_key(PODS, pod)
                if owner and owner.resource == INFERENCESERVICES and pod["spec"].get("nodeName") in cordoned - known:
                    self._queue.add(owner)
            known = cordoned
