"""kopf's requests for lists and watches, with the loop between them that a controller needs.

kopf's own loop ends the process at an error in a stream other than 410 and at a list that fails for a minute, watches
again without any pause when streams are cut, and does not tell what was deleted while it was not watching. So its
`continuous_watch` is replaced; the fault tests notice when a new kopf has no use for ours. What is seen goes straight
to the controller: kopf's own queues, one for each object, would only hand it on.
"""

import asyncio
import logging
import random
from collections.abc import AsyncIterator
from typing import Any, Protocol, cast

import aiohttp
from kopf._cogs.clients import errors, fetching, watching

from hone_operator.api import retry_after
from hone_operator.metrics import Metrics
from hone_operator.resources import WATCHED, Object, Resource

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 15.0
HEALTHY_SECONDS = 5.0
"""A watch that lasted so long is no failure, however it ended."""

logger = logging.getLogger(__name__)

_by_name = {(resource.api_version, resource.plural): resource for resource in WATCHED}


class Sink(Protocol):
    """Who is told what the API server has."""

    def saw(self, resource: Resource, body: Object) -> None: ...
    def gone(self, resource: Resource, body: Object) -> None: ...
    def listed(self, resource: Resource, namespace: str, uids: set[str], version: int) -> None: ...


def feed(sink: Sink, metrics: Metrics) -> None:
    """From now on, whatever kopf watches is told to the sink."""
    streams: dict[tuple[Resource, str], _Stream] = {}

    def continuous_watch(
        *, settings: Any, resource: Any, namespace: str | None, operator_pause_waiter: asyncio.Future[Any]
    ) -> AsyncIterator[Any]:
        api_version = f"{resource.group}/{resource.version}" if resource.group else resource.version
        known = _by_name[api_version, resource.plural]
        stream = streams.setdefault((known, namespace or ""), _Stream(sink, metrics, known, namespace or ""))
        return stream.run(settings=settings, resource=resource, namespace=namespace, waiter=operator_pause_waiter)

    watching.continuous_watch = continuous_watch
    # It reports each failed request, which this module does once and better.
    watching.logger.setLevel(logging.CRITICAL)


class _Stream:
    """One kind in one namespace or ("") in all. kopf calls `run` again whenever it ends."""

    def __init__(self, sink: Sink, metrics: Metrics, resource: Resource, namespace: str) -> None:
        self._sink = sink
        self._metrics = metrics
        self._resource = resource
        self._namespace = namespace
        self._failures = 0

    async def run(
        self, *, settings: Any, resource: Any, namespace: str | None, waiter: asyncio.Future[Any]
    ) -> AsyncIterator[Any]:
        """List, then watch for as long as the version of the list is good."""
        where = {"settings": settings, "resource": resource, "namespace": namespace}
        try:
            version = await self._list(where)
            yield watching.Bookmark.LISTED
            while not waiter.done():
                version = await self._watch(where, version, waiter)
        except watching.WatchingError as error:
            await self._pause(str(error))
        except errors.APIError as error:
            self._count(str(error.status))
            await self._pause(error.message or str(error), retry_after(error.headers or {}))
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            self._count("<error>")
            await self._pause(repr(error))

    async def _list(self, where: dict[str, Any]) -> str:
        uids: set[str] = set()
        version = ""
        async for page, listed_at in fetching.fetch_objs(logger=watching.logger, **where):
            self._count("200")
            version = listed_at
            for body in cast(list[Object], page):
                uids.add(body["metadata"]["uid"])
                self._sink.saw(self._resource, body)
        self._sink.listed(self._resource, self._namespace, uids, int(version))
        return version

    async def _watch(self, where: dict[str, Any], version: str, waiter: asyncio.Future[Any]) -> str:
        """Returns the version to go on from. Raises WatchingError when that is too old, or the server has an error."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        fault = None
        async for event in watching.watch_objs(since=version, operator_pause_waiter=waiter, **where):
            body = cast(Object, event["object"])
            if event["type"] == "ERROR":
                fault = f"{body.get('code')}: {body.get('message')}"
                break
            version = body["metadata"]["resourceVersion"]
            if event["type"] == "DELETED":
                self._sink.gone(self._resource, body)
            elif event["type"] in ("ADDED", "MODIFIED"):
                self._sink.saw(self._resource, body)
        healthy = loop.time() - begun >= HEALTHY_SECONDS
        self._count("200" if healthy or fault else "<error>")
        if healthy:
            self._failures = 0
        if fault:
            raise watching.WatchingError(fault)
        if not healthy:
            await self._pause("the watch was cut")
        return version

    def _count(self, code: str) -> None:
        self._metrics.requests.labels(code, "GET", self._resource.plural).inc()

    async def _pause(self, why: str, at_least: float = 0.0) -> None:
        """Ever longer while it keeps failing, and with jitter: all streams fail together."""
        pause = min(FIRST_PAUSE_SECONDS * 2.0 ** min(self._failures, 20), LONGEST_PAUSE_SECONDS)
        self._failures += 1
        pause = max(pause * random.uniform(0.5, 1.0), at_least)
        what = f"{self._resource.plural} in {self._namespace or 'all namespaces'}"
        # The first cut is everyday life: an API server closes its watches when it is rolled.
        logger.log(logging.WARNING if self._failures > 1 else logging.INFO, "%s: %s; again in %.1f s", what, why, pause)
        await asyncio.sleep(pause)
