"""Lists and watches that survive every fault: the reflectors of the kinds that the operator works with.

One reflector lists and watches one kind, in one namespace or in all. It starts again after every fault, with growing
pauses, and each new list also reports what was deleted meanwhile. In: kinds and namespaces. Out: calls of the sink:
watch_handlers.py.
"""

import asyncio
import logging
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Protocol

import aiohttp
from hone_api.layout import MANAGED_BY_LABEL, MANAGER

from hone_operator.kube.client import Api, ApiError
from hone_operator.objects.resources import CHILDREN, OWNERS, WATCHED, Object, Resource

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 15.0
# A watch that lasted so long is not a failure, however it ended.
HEALTHY_SECONDS = 5.0

# These statuses mean that a kind or a namespace is closed to the operator, once they have come REFUSED_BEFORE times.
REFUSED, REFUSED_BEFORE = (401, 403, 404, 405), 2

logger = logging.getLogger(__name__)


class Sink(Protocol):
    """The receiver of all lists and watch events."""

    def on_upsert(self, resource: Resource, body: Object) -> None: ...
    def on_delete(self, resource: Resource, body: Object) -> None: ...
    def on_relist(self, resource: Resource, namespace: str, uids: set[str], version: int) -> None: ...
    def on_relist_refused(self, resource: Resource, namespace: str, why: str) -> None: ...


async def run_reflectors(sink: Sink, api: Api, namespaces: Iterable[str]) -> None:
    """Watch all kinds, in these namespaces or (without any) in all. Ends only when cancelled, or by a bug."""
    # Children are listed after their owners: little is kept of children without an owner, or with a finished one.
    listed: dict[tuple[Resource, str], asyncio.Event] = defaultdict(asyncio.Event)
    async with asyncio.TaskGroup() as reflectors:
        for namespace in list(namespaces) or [""]:
            for resource in WATCHED:
                reflectors.create_task(Reflector(sink, api, resource, namespace).run(listed))


class Reflector:
    """The list and watch of one kind, in one namespace or ("") in all."""

    def __init__(self, sink: Sink, api: Api, resource: Resource, namespace: str) -> None:
        self._sink = sink
        self._api = api
        self._resource = resource
        self._namespace = namespace
        # The API server selects, so that Jobs and pods of other tools never reach the operator.
        self._selector = f"{MANAGED_BY_LABEL}={MANAGER}" if resource in CHILDREN else ""
        self._failures = 0
        self._watches = False
        self._unconfirmed: tuple[set[str], int] | None = None

    async def run(self, listed: Mapping[tuple[Resource, str], asyncio.Event]) -> None:
        """List, watch for as long as the list's version is usable, and start again. Ends only when cancelled."""
        if self._resource in CHILDREN:
            for owner in OWNERS:
                await listed[owner, self._namespace].wait()
        while True:
            try:
                self._watches = False
                version = await self._list()
                listed[self._resource, self._namespace].set()
                self._watches = True
                while True:
                    version = await self._watch(version)
            except ApiError as error:
                if error.status in REFUSED and self._failures >= REFUSED_BEFORE:
                    self._sink.on_relist_refused(self._resource, self._namespace, str(error))
                    # A kind that can be listed but not watched is not observed, although each list succeeds.
                    self._unconfirmed = (set(), 0) if self._watches else None
                    listed[self._resource, self._namespace].set()  # what else is in the namespace does not wait for it
                await self._pause(str(error), error.retry_after)
            except (aiohttp.ClientError, TimeoutError) as error:
                await self._pause(repr(error))

    async def _list(self) -> str:
        uids: set[str] = set()
        listing = self._api.iterate_items(self._resource, self._namespace, labelSelector=self._selector)
        async for body in listing:
            uids.add(body["metadata"]["uid"])
            self._sink.on_upsert(self._resource, body)
        if self._unconfirmed is None:
            self._sink.on_relist(self._resource, self._namespace, uids, int(listing.version))
        else:
            self._unconfirmed = uids, int(listing.version)
        return listing.version

    def _confirm(self) -> None:
        """Report the last list, once the watch after it is no longer refused."""
        if self._unconfirmed is not None:
            (uids, version), self._unconfirmed = self._unconfirmed, None
            self._sink.on_relist(self._resource, self._namespace, uids, version)

    async def _watch(self, version: str) -> str:
        """Watch until the stream ends. Return the version from which to continue.

        Raises ApiError when the version is too old, or the server has an error.
        """
        loop = asyncio.get_running_loop()
        begun = loop.time()
        why = "the watch was cut"
        try:
            async for event in self._api.watch(self._resource, self._namespace, self._selector, version):
                body = event["object"]
                if event["type"] == "ERROR":
                    raise ApiError(body.get("code") or 500, str(body.get("message") or ""))
                self._confirm()
                version = body["metadata"]["resourceVersion"]
                if event["type"] == "DELETED":
                    self._sink.on_delete(self._resource, body)
                elif event["type"] in ("ADDED", "MODIFIED"):
                    self._sink.on_upsert(self._resource, body)
        except (aiohttp.ClientError, TimeoutError) as error:
            why = repr(error)
        finally:
            if loop.time() - begun >= HEALTHY_SECONDS:
                self._failures = 0
        if loop.time() - begun < HEALTHY_SECONDS:
            await self._pause(why)
        return version

    async def _pause(self, why: str, at_least: float = 0.0) -> None:
        """Wait with exponential backoff and jitter: all streams fail together. `at_least`: seconds."""
        pause = min(FIRST_PAUSE_SECONDS * 2.0 ** min(self._failures, 20), LONGEST_PAUSE_SECONDS)
        self._failures += 1
        pause = max(pause * random.uniform(0.5, 1.0), at_least)
        what = f"{self._resource.plural} in {self._namespace or 'all namespaces'}"
        # The first cut is normal: an API server closes its watches when it is restarted.
        level = logging.WARNING if self._failures > 1 else logging.INFO
        logger.log(level, "%s: %s; again in %.1f s", what, why, pause)
        await asyncio.sleep(pause)
