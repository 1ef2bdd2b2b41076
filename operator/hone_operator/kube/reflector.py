"""Lists and watches that outlast every fault, in place of those of kopf.

kopf's own end the process at an error in a stream other than 410 and at a list that fails for a minute, watch again
without any pause when streams are cut, do not tell what was deleted while they were not watching, and fail for ever at
one object that is nested too deep for Python. kopf says what to watch and where; what is seen goes to the controller.
"""

import asyncio
import logging
import random
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from typing import Any, Protocol

import aiohttp
from hone_api.layout import MANAGED_BY_LABEL, MANAGER
from kopf._cogs.clients import watching

from hone_operator.kube.client import Api, ApiError
from hone_operator.objects.resources import CHILDREN, OWNERS, WATCHED, Object, Resource

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 15.0
# A watch that lasted so long is no failure, however it ended.
HEALTHY_SECONDS = 5.0

# Statuses that mean that a kind or a namespace is not the operator's to see, when they come again.
REFUSED, REFUSED_BEFORE = (401, 403, 404, 405), 2

logger = logging.getLogger(__name__)

_by_name = {(resource.api_version, resource.plural): resource for resource in WATCHED}


class Sink(Protocol):
    """Who is told what the API server has."""

    def saw(self, resource: Resource, body: Object) -> None: ...
    def gone(self, resource: Resource, body: Object) -> None: ...
    def listed(self, resource: Resource, namespace: str, uids: set[str], version: int) -> None: ...
    def unlisted(self, resource: Resource, namespace: str, why: str) -> None: ...


def feed(sink: Sink, api: Api) -> None:
    """From now on, whatever kopf watches is told to the sink, and nothing to kopf."""
    # Children are listed when it is known which owners there are, and which have finished: little is kept of others.
    listed: dict[tuple[Resource, str], asyncio.Event] = defaultdict(asyncio.Event)

    async def infinite_watch(*, resource: Any, namespace: str | None, **_: Any) -> AsyncIterator[Any]:
        api_version = f"{resource.group}/{resource.version}" if resource.group else resource.version
        stream = _Stream(sink, api, _by_name[api_version, resource.plural], namespace or "")
        await stream.run(listed)
        yield  # never reached; what makes this a generator

    watching.infinite_watch = infinite_watch


class _Stream:
    """One kind in one namespace or ("") in all."""

    def __init__(self, sink: Sink, api: Api, resource: Resource, namespace: str) -> None:
        self._sink = sink
        self._api = api
        self._resource = resource
        self._namespace = namespace
        # Server-side: of other people's Jobs and pods the operator never hears.
        self._selector = f"{MANAGED_BY_LABEL}={MANAGER}" if resource in CHILDREN else ""
        self._failures = 0
        self._watches = False
        self._unconfirmed: tuple[set[str], int] | None = None

    async def run(self, listed: Mapping[tuple[Resource, str], asyncio.Event]) -> None:
        """List, watch for as long as the version of the list is good, and begin anew. Ends only when cancelled."""
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
                    self._sink.unlisted(self._resource, self._namespace, str(error))
                    # What can be listed and not watched can't be seen, though each list succeeds.
                    self._unconfirmed = (set(), 0) if self._watches else None
                    listed[self._resource, self._namespace].set()  # what else is in the namespace does not wait for it
                await self._pause(str(error), error.retry_after)
            except (aiohttp.ClientError, TimeoutError) as error:
                await self._pause(repr(error))

    async def _list(self) -> str:
        uids: set[str] = set()
        listing = self._api.items(self._resource, self._namespace, labelSelector=self._selector)
        async for body in listing:
            uids.add(body["metadata"]["uid"])
            self._sink.saw(self._resource, body)
        if self._unconfirmed is None:
            self._sink.listed(self._resource, self._namespace, uids, int(listing.version))
        else:
            self._unconfirmed = uids, int(listing.version)
        return listing.version

    def _confirm(self) -> None:
        """Hand on the list that came before a watch that is no longer refused."""
        if self._unconfirmed is not None:
            (uids, version), self._unconfirmed = self._unconfirmed, None
            self._sink.listed(self._resource, self._namespace, uids, version)

    async def _watch(self, version: str) -> str:
        """Returns the version to go on from. Raises ApiError when that is too old, or the server has an error."""
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
                    self._sink.gone(self._resource, body)
                elif event["type"] in ("ADDED", "MODIFIED"):
                    self._sink.saw(self._resource, body)
        except (aiohttp.ClientError, TimeoutError) as error:
            why = repr(error)
        finally:
            if loop.time() - begun >= HEALTHY_SECONDS:
                self._failures = 0
        if loop.time() - begun < HEALTHY_SECONDS:
            await self._pause(why)
        return version

    async def _pause(self, why: str, at_least: float = 0.0) -> None:
        """Ever longer while it keeps failing, and with jitter: all streams fail together."""
        pause = min(FIRST_PAUSE_SECONDS * 2.0 ** min(self._failures, 20), LONGEST_PAUSE_SECONDS)
        self._failures += 1
        pause = max(pause * random.uniform(0.5, 1.0), at_least)
        what = f"{self._resource.plural} in {self._namespace or 'all namespaces'}"
        # The first cut is everyday life: an API server closes its watches when it is rolled.
        level = logging.WARNING if self._failures > 1 else logging.INFO
        logger.log(level, "%s: %s; again in %.1f s", what, why, pause)
        await asyncio.sleep(pause)
