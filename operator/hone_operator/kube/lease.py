"""One Lease of the API server, as seen by a replica that wants to hold it. Used by leader_election.py."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from enum import StrEnum

import aiohttp

from hone_operator.kube.client import Api, ApiError
from hone_operator.objects.resources import LEASES, Object

# How long the other replicas wait after the holder's last renewal.
LEASE_SECONDS = 15.0
# How long after its last renewal the holder may begin writes. The rest of the lease is for writes under way.
RENEW_SECONDS = 10.0
REQUEST_SECONDS = 5.0
# A Lease without a holder for so long has no followers left. This compares wall clocks, which may differ.
OLD_SECONDS = 60.0

logger = logging.getLogger(__name__)


class Lease:
    """A Lease: its last known state, and since when this replica holds it."""

    def __init__(self, api: Api, namespace: str, name: str, identity: str) -> None:
        self._api = api
        self._namespace = namespace
        self.name = name
        self.identity = identity
        self._seen: Object = {}
        self._seen_at = 0.0
        self._renewed_at: float | None = None
        # Why the API server refuses the Lease to this identity; None as far as is known.
        self.refusal: str | None = None

    def __str__(self) -> str:
        return f"Lease {self._namespace}/{self.name}"

    def fence(self) -> float:
        """Return for how many seconds it is certainly held: 0 when no write may begin."""
        if self._renewed_at is None:
            return 0.0
        age = time.monotonic() - self._renewed_at
        return LEASE_SECONDS - age if age < RENEW_SECONDS else 0.0

    @property
    def is_held(self) -> bool:
        return Lease.fence(self) > 0

    @property
    def is_missing(self) -> bool:
        """Whether it did not exist when it was last read or written, or was not read yet."""
        return not self._seen

    def get_expiry(self) -> float | None:
        """Return when the other holder's lease expires without a renewal; None before the Lease was read."""
        if self.is_missing:
            return None
        return self._seen_at + float(self._seen["spec"].get("leaseDurationSeconds") or LEASE_SECONDS)

    async def attempt(self) -> None:
        """Take or renew it."""
        begun = time.monotonic()
        if await self._ask(self._take_or_renew):
            self._renewed_at = begun

    async def look(self) -> None:
        """Read it, to know since when its spec is unchanged."""
        await self._ask(self._look)

    async def release(self) -> None:
        """Release it, so that another replica can take it at once."""
        held, self._renewed_at = self.is_held, None
        if not held:
            return
        spec = {**self._seen["spec"], "holderIdentity": "", "leaseDurationSeconds": 1, "renewTime": _format_now()}
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                self._observe(await self._api.replace(LEASES, {**self._seen, "spec": spec}))
        except (ApiError, aiohttp.ClientError, TimeoutError) as error:
            logger.warning("%s was not released: %r", self, error)

    async def _ask(self, request: Callable[[], Awaitable[bool]]) -> bool:
        """Make a request. Return whether it succeeded in time with the wanted result."""
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                succeeded = await request()
        except ApiError as error:
            before = self.refusal
            if 400 <= error.status < 500 and error.status not in (409, 429):
                self.refusal = f"the API server refuses {self}: {error}"
            # 409: another replica was faster, which is not a fault. A refusal is logged once, not at each try.
            if error.status != 409 and (self.refusal is None or self.refusal != before):
                logger.warning("%s: %s", self, error)
            return False
        except (aiohttp.ClientError, TimeoutError) as error:
            logger.warning("%s: %r", self, error)
            return False
        self.refusal = None
        return succeeded

    async def _take_or_renew(self) -> bool:
        if self._renewed_at is None or not self._seen:
            found = await self._api.get(LEASES, self._namespace, self.name)
            if found is None:
                if self._seen:
                    logger.warning("%s was deleted: it is created again", self)
                self._observe(await self._api.create(LEASES, self._build_body(_format_now(), 0)))
                return True
            self._observe(found)
            if not self._is_free():
                return False
        before = self._seen["spec"]
        if before.get("holderIdentity") == self.identity:
            body = self._build_body(before["acquireTime"], before.get("leaseTransitions") or 0)
        else:
            body = self._build_body(_format_now(), (before.get("leaseTransitions") or 0) + 1)
        body["metadata"]["resourceVersion"] = self._seen["metadata"]["resourceVersion"]
        try:
            self._observe(await self._api.replace(LEASES, body))
        except ApiError as error:
            if error.status in (404, 409):
                await self._look()
            if self.is_missing:
                logger.warning("%s was deleted", self)
                return False
            raise
        return True

    async def _look(self) -> bool:
        """Read the changed Lease. Its holder may try again; a replica that is not its holder no longer leads."""
        found = await self._api.get(LEASES, self._namespace, self.name)
        self._observe(found or {})
        if self._get_holder() != self.identity:
            self._renewed_at = None
        return True

    def _observe(self, lease: Object) -> None:
        if lease.get("spec") != self._seen.get("spec"):
            self._seen_at = time.monotonic()
        self._seen = lease

    def _get_holder(self) -> str:
        return str((self._seen.get("spec") or {}).get("holderIdentity") or "")

    def _is_free(self) -> bool:
        return self._get_holder() in ("", self.identity) or (self.get_expiry() or 0.0) <= time.monotonic()

    def _build_body(self, acquired: str, transitions: int) -> Object:
        return {
            "apiVersion": LEASES.api_version,
            "kind": LEASES.kind,
            "metadata": {"name": self.name, "namespace": self._namespace},
            "spec": {
                "holderIdentity": self.identity,
                "leaseDurationSeconds": int(LEASE_SECONDS),
                "acquireTime": acquired,
                "renewTime": _format_now(),
                "leaseTransitions": transitions,
            },
        }


class Use(StrEnum):
    """Whether a FormerLease concerns this Deployment."""

    UNKNOWN = "unknown"
    # A pod of this Deployment holds it, or may soon: this replica must hold it as well before it writes.
    OURS = "ours"
    # Nobody holds it, or another Deployment.
    NONE = "none"


def judge_former_lease(spec: Object | None, identity: str, before: Use, unchanged: float, age: float) -> Use:
    """Return the use of a FormerLease with this spec, where `before` was its use until now.

    The spec is unchanged for `unchanged` seconds, and was written `age` seconds ago. A leader that ends leaves a Lease
    without a holder to its followers, which read it every few seconds.
    """
    if spec is None:
        return Use.NONE
    if holder := str(spec.get("holderIdentity") or ""):
        return Use.OURS if find_deployment(holder) == find_deployment(identity) else Use.NONE
    return Use.NONE if unchanged >= LEASE_SECONDS or age >= OLD_SECONDS else before


def find_deployment(identity: str) -> str:
    """Return the Deployment of an identity POD_UUID.

    Kubernetes cuts long names of pods before their last 5 characters.
    """
    pod = identity.rpartition("_")[0]
    return pod[:-5].rstrip("-").rpartition("-")[0] or pod


class FormerLease(Lease):
    """A Lease of another name, by which pods of this Deployment with another version or other values elect a leader.

    It is taken when pods of this Deployment use it, and otherwise left alone: it may belong to another Deployment.
    """

    use = Use.UNKNOWN

    def fence(self) -> float:
        match self.use:
            case Use.NONE:
                return LEASE_SECONDS
            case Use.OURS:
                return super().fence()
        return 0.0

    async def attempt(self) -> None:
        if not (self.use is Use.OURS and self.is_held):
            await self.look()
        if self.use is Use.OURS:
            await super().attempt()
            self._judge()

    async def look(self) -> None:
        if await self._ask(self._look):
            self._judge()
        elif self.refusal and self.use is Use.UNKNOWN:
            logger.warning("%s; a leader by this Lease would not be noticed", self.refusal)
            self.use = Use.NONE

    async def let_go(self) -> None:
        """Release it for good, once no pod remains that elects by it."""
        if self.is_held:
            await self.release()
            self.use = Use.NONE

    def _judge(self) -> None:
        spec = self._seen.get("spec")
        age = _count_seconds_since(str(spec.get("renewTime"))) if spec else 0.0
        self.use = judge_former_lease(spec, self.identity, self.use, time.monotonic() - self._seen_at, age)


def _format_now() -> str:
    """Return the present time as a MicroTime of Kubernetes."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _count_seconds_since(moment: str) -> float:
    """Return the seconds since a moment, by the wall clock; 0 where the moment can't be parsed."""
    try:
        return (datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds()
    except (ValueError, TypeError):
        return 0.0
