"""Leader election by a Lease, as in client-go: of several replicas only the holder of the Lease writes.

The client library's own election compares wall clocks, sets no time limit on its requests, can't release a Lease, and
does not report from when on the holder must not write. This one uses the local monotonic clock, and `fence` returns
before each write for how long it may still last. One Lease: lease.py.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from hone_operator.kube.client import Api
from hone_operator.kube.lease import FormerLease, Lease

# The default name of the Lease.
LEASE = "hone-operator"
RETRY_SECONDS = 2.0
# How long a leader keeps a former Lease: as long as the default deadline of a roll-out.
HANDOVER_SECONDS = 600.0
POD_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")

logger = logging.getLogger(__name__)


def read_pod_namespace() -> str | None:
    """Return the namespace that this process runs in, or None outside a cluster."""
    return POD_NAMESPACE.read_text().strip() if POD_NAMESPACE.exists() else None


class LeaderElector:
    """A replica that tries to hold the Lease until `stop`. `on_lost` is called when it lost the Lease.

    While it leads, no pod of its Deployment must lead by a Lease with one of the `former` names, so it holds those too.
    All replicas take their Leases in the order of the names, so that no two wait for each other.
    """

    def __init__(
        self,
        api: Api,
        namespace: str,
        name: str,
        identity: str,
        on_lost: Callable[[str], None],
        former: Iterable[str] = (),
    ) -> None:
        self._api = api
        self.identity = identity
        self._on_lost = on_lost
        self._own = Lease(api, namespace, name, identity)
        self._former = [FormerLease(api, namespace, each, identity) for each in sorted({*former} - {name})]
        self._leases = sorted((self._own, *self._former), key=lambda lease: lease.name)
        self.elected = asyncio.Event()
        self._task = asyncio.create_task(self._run())
        self._task.add_done_callback(self._handle_end)

    @property
    def is_leader(self) -> bool:
        return self.fence() > 0

    def fence(self) -> float:
        """Return for how many seconds it is certain that no other replica leads: 0 when no write may begin."""
        return min(lease.fence() for lease in self._leases)

    @property
    def refusal(self) -> str | None:
        """Why this replica can't be elected at all."""
        return self._own.refusal

    async def stop(self) -> None:
        """Let another replica lead at once. Call it only when no write is under way."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await asyncio.gather(*(lease.release() for lease in self._leases))
        await self._api.close()

    async def _run(self) -> None:
        """Follow until the Lease is free, then lead until it is lost."""
        logger.info("%s waits for %s", self.identity, self._own)
        await self.try_acquire_or_renew()
        while not self.is_leader:
            await asyncio.sleep(self._compute_seconds_to_next_try())
            await self.try_acquire_or_renew()
        logger.info("%s leads", self.identity)
        self.elected.set()
        handed_over = time.monotonic() + HANDOVER_SECONDS
        while self.is_leader:
            await asyncio.sleep(RETRY_SECONDS)
            if self.is_leader and time.monotonic() >= handed_over:
                await asyncio.gather(*(lease.let_go() for lease in self._former))
            if self.is_leader:
                await self.try_acquire_or_renew()

    async def try_acquire_or_renew(self) -> None:
        """Renew all Leases; or take each one once those before it are held or free, and release it while one is not."""
        if self.is_leader:
            await asyncio.gather(*(lease.attempt() for lease in self._leases))
            return
        for number, lease in enumerate(self._leases):
            if all(each.fence() > 0 for each in self._leases[:number]):
                await lease.attempt()
            else:
                await lease.release()
                await lease.look()

    def _handle_end(self, task: asyncio.Task[None]) -> None:
        """Report the end of the election, also by a bug: a replica without an election would silently do nothing."""
        if not task.cancelled():
            lost = min(self._leases, key=lambda lease: lease.fence())
            why = "it could not be renewed in time, or another took it"
            if lost.is_missing:
                why = "it was deleted, and the replica that is elected next creates it again"
            if error := task.exception():
                why = repr(error)
            self._on_lost(f"{self.identity} no longer holds {lost}: {why}")

    def _compute_seconds_to_next_try(self) -> float:
        """Return the seconds until the next try: with jitter, and no later than the next Lease expires."""
        pause = RETRY_SECONDS * random.uniform(1.0, 1.2)
        now = time.monotonic()
        left = [at - now for lease in self._leases if not lease.fence() and (at := lease.get_expiry()) is not None]
        return max(0.05, min([pause, *(each for each in left if each > 0)]))
