"""Run transfers in threads, and repeat those that failed for a moment.

Input are the tasks of `download` or of `push.s3`: each transfers a piece of an object. The first failure that lasts
ends all of them.
"""

import random
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import TypeVar

from hone_api.reasons import STORE_UNREACHABLE, HoneError

from hone_trainer.remote.connections import CONNECTIONS
from hone_trainer.remote.locations import Location
from hone_trainer.remote.objects import TransientError

Result = TypeVar("Result")
# Attempts without a byte of progress, about half a minute in all.
ATTEMPTS = 6
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.5, 20.0


class StoppedError(Exception):
    """A transfer ends because of a failure of another thread."""


@dataclass
class Transfers:
    """The transfers from or to one location."""

    location: Location
    connections: int = field(default=CONNECTIONS, kw_only=True)
    first_wait_seconds: float = field(default=FIRST_WAIT_SECONDS, kw_only=True)
    _stopped: threading.Event = field(default_factory=threading.Event, kw_only=True, repr=False)

    @property
    def is_stopped(self) -> bool:
        """Whether another thread has failed, so that all end."""
        return self._stopped.is_set()

    def retry(self, attempt: Callable[[], Result], progress: Callable[[], int] = lambda: 0) -> Result:
        """Return what `attempt` returns; repeat it after a TransientError, as long as it makes progress now and then.

        Raises HoneError StoreUnreachable.
        """
        failed, reached = 0, progress()
        while True:
            try:
                return attempt()
            except TransientError as error:
                failed = 1 if progress() > reached else failed + 1
                reached = progress()
                if failed >= ATTEMPTS:
                    found = f"{self.location.where}, and the store failed {ATTEMPTS} times: {error}"
                    raise HoneError(STORE_UNREACHABLE, found) from error
                longest = min(self.first_wait_seconds * 2**failed, LONGEST_WAIT_SECONDS)
                if self._stopped.wait(max(error.wait_seconds, random.uniform(longest / 2, longest))):
                    raise StoppedError from None

    def run(self, tasks: list[Callable[[], None]]) -> None:
        """Run tasks in threads; the first failure ends them all and is raised."""
        pool = ThreadPoolExecutor(self.connections)
        try:
            futures: list[Future[None]] = [pool.submit(task) for task in tasks]
            wait(futures, return_when=FIRST_EXCEPTION)
            failures = [error for future in futures if future.done() and (error := future.exception())]
            if failures:
                raise failures[0]
        finally:
            self._stopped.set()
            pool.shutdown(cancel_futures=True)
            self._stopped.clear()
