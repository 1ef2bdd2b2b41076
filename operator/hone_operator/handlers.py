"""kopf's part: the process, its start and its end, and what is watched. What is seen goes to the controller."""

import asyncio
import logging
import os
import socket
import uuid
from typing import Any

import kopf
from hone_api.layout import MANAGED_BY_LABEL, MANAGER

from hone_operator import streams
from hone_operator.api import Api
from hone_operator.controller import Controller
from hone_operator.leader import Elector
from hone_operator.resources import CHILDREN, OWNERS, WATCHED, Resource

CRD_WAIT_SECONDS = 2.0

logger = logging.getLogger(__name__)


def register(registry: kopf.OperatorRegistry, image: str, namespaces: list[str], lease_namespace: str | None) -> None:
    """Watch both kinds and their children; run the controller between start and clean-up.

    With a `lease_namespace`, the controller works only while this process holds the Lease there.
    """

    @kopf.on.startup(registry=registry)
    async def start(memo: Any, settings: kopf.OperatorSettings, **_: Any) -> None:
        configure(settings)
        memo.elector = await _elector(lease_namespace) if lease_namespace else None
        api = await Api.connect(memo.elector.fence if memo.elector else None)
        while not await api.serves(*OWNERS):
            logger.warning(
                "The API server does not serve FineTuneJob and InferenceService yet: are the CRDs installed?"
            )
            await asyncio.sleep(CRD_WAIT_SECONDS)
        memo.controller = Controller(api, image, namespaces)
        streams.feed(memo.controller)
        memo.work = asyncio.create_task(_work(memo.controller, memo.elector))

    @kopf.on.cleanup(registry=registry)
    async def stop(memo: Any, **_: Any) -> None:
        memo.work.cancel()
        await memo.controller.stop()
        if memo.elector:
            await memo.elector.stop()

    for resource in WATCHED:
        _watch(registry, resource)


async def _work(controller: Controller, elector: Elector | None) -> None:
    if elector:
        await elector.elected.wait()
    await controller.start()


async def _elector(namespace: str) -> Elector:
    """With a session of its own, which nothing else can keep busy."""
    identity = f"{socket.gethostname()}_{uuid.uuid4()}"
    return Elector(await Api.connect(), namespace, identity, on_lost=_die)


def _die(why: str) -> None:
    """At once: what is under way must not go on when another leads. The kubelet starts the container anew."""
    logger.error("%s; this process ends", why)
    logging.shutdown()
    os._exit(1)


def configure(settings: kopf.OperatorSettings) -> None:
    """Time limits, and server-side filters: of other people's Jobs and pods the operator never hears."""
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 5
    # Failures are waited out in streams.py, and counted there.
    settings.networking.error_backoffs = ()
    settings.watching.connect_timeout = 5
    settings.watching.server_timeout = 300
    settings.watching.chunk_size = 500
    settings.posting.enabled = False
    # What is watched is known, and served before the first watch begins.
    settings.scanning.disabled = True
    for resource in CHILDREN:
        group, _, version = resource.api_version.rpartition("/")
        settings.watching.label_selectors[group, version, resource.plural] = f"{MANAGED_BY_LABEL}={MANAGER}"


def _watch(registry: kopf.OperatorRegistry, resource: Resource) -> None:
    """kopf watches what a handler asks for; streams.py tells the controller, and kopf nothing."""
    group, _, version = resource.api_version.rpartition("/")

    @kopf.on.event(group, version, resource.plural, registry=registry, id=resource.plural)
    async def never_called(**_: Any) -> None: ...
