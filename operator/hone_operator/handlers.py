"""Connect the operator to kopf, which runs the process.

kopf calls `start` and `stop`. Between them an Operator holds the metrics server, the leader election, the API client,
the reflectors (kube/reflector.py) and the controller. Next: controller.py.
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
from hone_operator.kube.client import Api, ApiError
from hone_operator.kube.leader_election import LeaderElector
from hone_operator.kube.reflector import run_reflectors
from hone_operator.objects.resources import OWNERS
from hone_operator.observability.health import serve_status
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
        self._elector: LeaderElector | None = None
        self._controller: Controller | None = None
        self._server: LoopServer | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        options, metrics = self._options, self._metrics
        if options.listen:
            self._server = await serve_status(
                options.listen, metrics, self._explain_sickness, self._explain_unreadiness, self._remark
            )
        if options.lease_namespace:
            # The election has a session of its own, which other requests can't fill.
            api = await Api.connect(metrics)
            lease = options.lease_namespace, options.lease_name
            identity = f"{socket.gethostname()}_{uuid.uuid4()}"
            self._elector = elector = LeaderElector(api, *lease, identity, _exit_at_once, options.former_leases)
            metrics.watch_lease(lambda: elector.refusal is not None)
        api = await Api.connect(metrics, self._elector.fence if self._elector else None)
        await _wait_until_served(api)
        self._controller = Controller(api, options.images, options.namespaces, metrics, self._is_leader)
        if options.lease_namespace:
            self._controller.executor.installation = f"{options.lease_namespace}/{options.lease_name}"
        self._controller.handlers.on_past = _exit_at_once  # the cache is newer than the cluster, so it is useless
        reflectors = asyncio.create_task(run_reflectors(self._controller.handlers, api, options.namespaces))
        reflectors.add_done_callback(_exit_without_reflectors)
        self._tasks = [reflectors, asyncio.create_task(self._begin(self._controller))]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
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

    def _is_leader(self) -> bool:
        return self._elector is None or self._elector.is_leader

    def _explain_sickness(self) -> str | None:
        return self._controller.explain_stall() if self._controller else None

    def _explain_unreadiness(self) -> str | None:
        if self._elector and self._elector.refusal:
            return f"it can't be elected: {self._elector.refusal}"
        if self._controller is None:
            return "the API server has not served FineTuneJobs and InferenceServices yet"
        if self._controller.handlers.synced.is_set():
            return None
        lacking = self._controller.coverage.describe_refused()
        return "not all that exists has been seen yet" + (f"; {lacking}" if lacking else "")

    def _remark(self) -> str | None:
        return self._controller.coverage.describe_refused() if self._controller else None


def register_operator(registry: kopf.OperatorRegistry, options: Options) -> None:
    """Run the operator between kopf's start and clean-up."""
    operator = Operator(options)

    @kopf.on.startup(registry=registry)
    async def start(settings: kopf.OperatorSettings, **_: Any) -> None:
        configure_kopf(settings)
        await operator.start()

    @kopf.on.cleanup(registry=registry)
    async def stop(**_: Any) -> None:
        await operator.stop()


async def _wait_until_served(api: Api) -> None:
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


def _exit_at_once(why: str) -> None:
    """Exit at once: writes under way must not continue when another replica leads.

    The kubelet restarts the container.
    """
    logger.error("%s; this process ends", why)
    logging.shutdown()
    os._exit(1)


def _exit_without_reflectors(task: asyncio.Task[None]) -> None:
    """End the process after a bug in a reflector: it would work on a cache that no longer follows the cluster."""
    if not task.cancelled():
        logger.error("a watch ended", exc_info=task.exception())
        _exit_at_once("the cluster is no longer watched")


class _Backoffs(Iterable[float]):
    """Seconds between the tries of one request; the sequence has no end."""

    def __iter__(self) -> Iterator[float]:
        return chain((1.0, 2.0, 4.0, 8.0), repeat(15.0))


def configure_kopf(settings: kopf.OperatorSettings) -> None:
    """Configure the few requests that kopf itself still makes at its start."""
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 5
    settings.networking.error_backoffs = _Backoffs()
    settings.posting.enabled = False
    # kopf watches nothing: the reflectors do.
    settings.scanning.disabled = True
