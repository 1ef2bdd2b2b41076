"""Leader election by a Lease, as client-go has it: of several replicas only the holder of the Lease writes.

The client library's own election judges by wall clocks, sets no time limit on its requests, can't release a Lease, and
has no moment after which the holder knows that it must not write. Here the clock is the local monotonic one, and
`fence` says before each write for how long it may still last.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import aiohttp

from hone_operator.api import Api, ApiError
from hone_operator.resources import LEASES, Object

LEASE = "hone-operator"
"""The name, where the command line says none."""
LEASE_SECONDS = 15.0
"""How long the others wait after the holder was last heard of."""
RENEW_SECONDS = 10.0
"""How long after the last renewal the holder may write. The rest of the lease is for writes under way."""
RETRY_SECONDS = 2.0
REQUEST_SECONDS = 5.0
POD_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")

logger = logging.getLogger(__name__)


def pod_namespace() -> str | None:
    """The namespace that this process runs in, or None outside a cluster."""
    return POD_NAMESPACE.read_text().strip() if POD_NAMESPACE.exists() else None


class Elector:
    """Tries to hold the Lease until `stop`. `on_lost` is called when it could not be kept."""

    def __init__(self, api: Api, namespace: str, name: str, identity: str, on_lost: Callable[[str], None]) -> None:
        self._api = api
        self._namespace = namespace
        self._name = name
        self.identity = identity
        self._on_lost = on_lost
        self._seen: Object = {}
        self._seen_at = 0.0
        self._renewed_at: float | None = None
        self.elected = asyncio.Event()
        self._task = asyncio.create_task(self._run())
        self._task.add_done_callback(self._ended)

    @property
    def leads(self) -> bool:
        return self.fence() > 0

    def fence(self) -> float:
        """Seconds for which the Lease is certain: 0 when no write may begin."""
        if self._renewed_at is None:
            return 0.0
        age = time.monotonic() - self._renewed_at
        return LEASE_SECONDS - age if age < RENEW_SECONDS else 0.0

    async def stop(self) -> None:
        """Let another lead at once. Only when no write is under way any more."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        if self.leads:
            await self._release()
        await self._api.close()

    async def _run(self) -> None:
        """Follow until the Lease is free, then lead until it is lost."""
        logger.info("%s waits for Lease %s/%s", self.identity, self._namespace, self._name)
        await self._try()
        while not self.leads:
            await asyncio.sleep(self._until_next_try())
            await self._try()
        logger.info("%s leads", self.identity)
        self.elected.set()
        while self.leads:
            await asyncio.sleep(RETRY_SECONDS)
            if self.leads:
                await self._try()

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Also of a fault of its own: a replica without an election would do nothing, and never say so."""
        if not task.cancelled():
            why = repr(error) if (error := task.exception()) else "it could not be renewed in time, or another took it"
            self._on_lost(f"{self.identity} no longer holds Lease {self._namespace}/{self._name}: {why}")

    async def _release(self) -> None:
        self._renewed_at = None
        spec = {**self._seen["spec"], "holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": _now()}
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                await self._api.replace(LEASES, {**self._seen, "spec": spec})
        except (ApiError, aiohttp.ClientError, TimeoutError) as error:
            logger.warning("Lease %s/%s was not released: %r", self._namespace, self._name, error)

    async def _try(self) -> None:
        """Take or renew the Lease."""
        begun = time.monotonic()
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                if await self._take_or_renew():
                    self._renewed_at = begun
        except ApiError as error:
            if error.status != 409:  # 409: another was faster, which is no fault
                logger.warning("Lease %s/%s: %s", self._namespace, self._name, error)
        except (aiohttp.ClientError, TimeoutError) as error:
            logger.warning("Lease %s/%s: %r", self._namespace, self._name, error)

    async def _take_or_renew(self) -> bool:
        if self._renewed_at is None or not self._seen:
            found = await self._api.get(LEASES, self._namespace, self._name)
            if found is None:
                self._saw(await self._api.create(LEASES, self._lease(_now(), 0)))
                return True
            self._saw(found)
            if not self._is_free():
                return False
        before = self._seen["spec"]
        if before.get("holderIdentity") == self.identity:
            body = self._lease(before["acquireTime"], before.get("leaseTransitions") or 0)
        else:
            body = self._lease(_now(), (before.get("leaseTransitions") or 0) + 1)
        body["metadata"]["resourceVersion"] = self._seen["metadata"]["resourceVersion"]
        try:
            self._saw(await self._api.replace(LEASES, body))
        except ApiError as error:
            if error.status in (404, 409):
                await self._look()
            raise
        return True

    async def _look(self) -> None:
        """Read the Lease that is not as it was. Whoever is still named in it may try again; others no longer lead."""
        found = await self._api.get(LEASES, self._namespace, self._name)
        if found is not None:
            self._saw(found)
        if found is None or found["spec"].get("holderIdentity") != self.identity:
            self._renewed_at = None

    def _saw(self, lease: Object) -> None:
        if lease.get("spec") != self._seen.get("spec"):
            self._seen_at = time.monotonic()
        self._seen = lease

    def _is_free(self) -> bool:
        holder = self._seen["spec"].get("holderIdentity")
        return holder in (None, "", self.identity) or self._expires() <= time.monotonic()

    def _expires(self) -> float:
        return self._seen_at + float(self._seen["spec"].get("leaseDurationSeconds") or LEASE_SECONDS)

    def _until_next_try(self) -> float:
        """With jitter, so that followers don't try together; no later than the Lease runs out."""
        pause = RETRY_SECONDS * random.uniform(1.0, 1.2)
        left = self._expires() - time.monotonic() if self._seen else pause
        return max(0.05, min(pause, left)) if left > 0 else pause

    def _lease(self, acquired: str, transitions: int) -> Object:
        return {
            "apiVersion": LEASES.api_version,
            "kind": LEASES.kind,
            "metadata": {"name": self._name, "namespace": self._namespace},
            "spec": {
                "holderIdentity": self.identity,
                "leaseDurationSeconds": int(LEASE_SECONDS),
                "acquireTime": acquired,
                "renewTime": _now(),
                "leaseTransitions": transitions,
            },
        }


def _now() -> str:
    """A MicroTime."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
