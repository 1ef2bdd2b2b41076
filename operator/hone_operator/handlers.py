"""Connect the operator to kopf, which runs the process and decides what is watched.

kopf calls `start` and `stop`. Between them an Operator holds the metrics server, the leader election, the API client
and the controller. kopf's own watches are replaced (kube/reflector.py): they report to the controller, and no handler
is called. Next: controller.py.
"""

import asyncio
import logging
import os
import socket
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Any

import aiohttp
import kopf
from hone_api.io.status_server import LoopServer

from hone_operator.controller import Controller
from hone_operator.kube import reflector
from hone_operator.kube.client import Api, ApiError
from hone_operator.kube.leader_election import Elector
from hone_operator.objects.resources import OWNERS, WATCHED, Resource
from hone_operator.observability.health import serve
from hone_operator.observability.metrics import Metrics
from hone_operator.pods.pod_spec import Images

CRD_WAIT_SECONDS = 2.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """The options of the command line. With a `lease_namespace`, only the holder of the Lease there works."""

    images: Images
    namespaces: list[str]
    lease_namespace: str | None
    lease_name: str
    former_leases: tuple[str, ...]
    listen: str | None


class Operator:
    """The running operator, from kopf's start-up to its clean-up."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._metrics = Metrics(options.lease_name)
        self._elector: Elector | None = None
        self._controller: Controller | None = None
        self._server: LoopServer | None = None
        self._work: asyncio.Task[None] | None = None

    async def start(self) -> None:
        options, metrics = self._options, self._metrics
        if options.listen:
            self._server = await serve(options.listen, metrics, self._why_sick, self._why_unready, self._remark)
        if options.lease_namespace:
            # The election has a session of its own, which other requests can't fill.
            api = await Api.connect(metrics)
            lease = options.lease_namespace, options.lease_name
            identity = f"{socket.gethostname()}_{uuid.uuid4()}"
            self._elector = elector = Elector(api, *lease, identity, _die, options.former_leases)
            metrics.watch_lease(lambda: elector.refusal is not None)
        api = await Api.connect(metrics, self._elector.fence if self._elector else None)
        await _until_served(api)
        self._controller = Controller(api, options.images, options.namespaces, metrics, self._leads)
        if options.lease_namespace:
            self._controller.executor.installation = f"{options.lease_namespace}/{options.lease_name}"
        self._controller.on_past = _die  # the cache is newer than the cluster, so it is useless
        reflector.feed(self._controller, api)
        self._work = asyncio.create_task(self._begin(self._controller))

    async def stop(self) -> None:
        if self._work:
            self._work.cancel()
        if self._controller:
            await self._controller.stop()
        if self._elector:
            await self._elector.stop()
        if self._server:
            await self._server.close()

    async def _begin(self, controller: Controller) -> None:
        if self._elector:
            await self._elector.elected.wait()
        await controller.start()

    def _leads(self) -> bool:
        return self._elector is None or self._elector.leads

    def _why_sick(self) -> str | None:
        return self._controller.why_stuck() if self._controller else None

    def _why_unready(self) -> str | None:
        if self._elector and self._elector.refusal:
            return f"it can't be elected: {self._elector.refusal}"
        if self._controller is None:
            return "the API server has not served FineTuneJobs and InferenceServices yet"
        if self._controller.synced.is_set():
            return None
        lacking = self._controller.coverage.describe()
        return "not all that exists has been seen yet" + (f"; {lacking}" if lacking else "")

    def _remark(self) -> str | None:
        return self._controller.coverage.describe() if self._controller else None


def register(registry: kopf.OperatorRegistry, options: Options) -> None:
    """Watch both kinds and their children; run the controller between start and clean-up."""
    operator = Operator(options)

    @kopf.on.startup(registry=registry)
    async def start(settings: kopf.OperatorSettings, **_: Any) -> None:
        configure(settings)
        await operator.start()

    @kopf.on.cleanup(registry=registry)
    async def stop(**_: Any) -> None:
        await operator.stop()

    for resource in WATCHED:
        _watch(registry, resource)


async def _until_served(api: Api) -> None:
    """Wait for the API server and the two kinds. Exiting instead would lead to CrashLoopBackOff."""
    while True:
        try:
            if await api.serves(*OWNERS):
                return
            logger.warning(
                "The API server does not serve FineTuneJob and InferenceService yet: are the CRDs installed?"
            )
        except (ApiError, aiohttp.ClientError, TimeoutError) as error:
            logger.warning("The API server does not answer yet: %r", error)
        await asyncio.sleep(CRD_WAIT_SECONDS)


def _die(why: str) -> None:
    """Exit at once: writes under way must not continue when another replica leads.

    The kubelet restarts the container.
    """
    logger.error("%s; this process ends", why)
    logging.shutdown()
    os._exit(1)


class _Backoffs(Iterable[float]):
    """Seconds between the tries of one request; the sequence has no end."""

    def __iter__(self) -> Iterator[float]:
        return chain((1.0, 2.0, 4.0, 8.0), repeat(15.0))


def configure(settings: kopf.OperatorSettings) -> None:
    """Configure the few requests that kopf itself still makes at its start."""
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 5
    settings.networking.error_backoffs = _Backoffs()
    settings.posting.enabled = False
    # The watched kinds are known, and served before the first watch begins.
    settings.scanning.disabled = True


def _watch(registry: kopf.OperatorRegistry, resource: Resource) -> None:
    """Make kopf watch a kind: it needs a handler. reflector.py reports to the controller instead of to that handler."""
    group, _, version = resource.api_version.rpartition("/")

    @kopf.on.event(group, version, resource.plural, registry=registry, id=resource.plural)
    async def never_called(**_: Any) -> None: ...
