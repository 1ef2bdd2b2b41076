"""kopf's part: watch streams. Its handlers only tell the controller what was seen."""

import asyncio
import logging
import time
from typing import Any

import kopf
from hone_api.layout import MANAGED_BY_LABEL, MANAGER

from hone_operator.api import Api
from hone_operator.controller import Controller
from hone_operator.resources import CHILDREN, OWNERS, WATCHED, Resource

CRD_WAIT_SECONDS = 2.0

logger = logging.getLogger(__name__)


def register(registry: kopf.OperatorRegistry, image: str, namespaces: list[str]) -> None:
    """Watch both kinds and their children; run the controller between start and clean-up."""

    @kopf.on.startup(registry=registry)
    async def start(memo: Any, settings: kopf.OperatorSettings, **_: Any) -> None:
        configure(settings)
        api = await Api.connect()
        while not await api.serves(*OWNERS):
            logger.warning(
                "The API server does not serve FineTuneJob and InferenceService yet: are the CRDs installed?"
            )
            await asyncio.sleep(CRD_WAIT_SECONDS)
        memo.controller = Controller(api, image, namespaces)

    @kopf.on.cleanup(registry=registry)
    async def stop(memo: Any, **_: Any) -> None:
        await memo.controller.stop()

    @kopf.on.probe(registry=registry, id="secondsSinceLastPass")
    async def health(memo: Any, **_: Any) -> float:
        return float(round(time.monotonic() - memo.controller.last_success, 1))

    for resource in WATCHED:
        _watch(registry, resource)


def configure(settings: kopf.OperatorSettings) -> None:
    """Time limits, and server-side filters: of other people's Jobs and pods the operator never hears."""
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 5
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
    """kopf handles events only after everything that exists has been indexed: until then the workers wait."""
    group, _, version = resource.api_version.rpartition("/")
    options: Any = {"registry": registry, "id": resource.plural}

    @kopf.index(group, version, resource.plural, **options)
    async def exists(body: kopf.Body, memo: Any, **_: Any) -> None:
        memo.controller.saw(resource, dict(body))

    @kopf.on.event(group, version, resource.plural, **options)
    async def happened(event: Any, memo: Any, **_: Any) -> None:
        if event["type"] == "DELETED":
            memo.controller.gone(resource, event["object"])
        memo.controller.start()
