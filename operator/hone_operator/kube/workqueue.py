"""A work queue of keys, as in client-go: a key is queued once, is never with two workers, and is retried with backoff.

In: keys of objects that need a pass, from controller.py. Out: one key at a time to each worker.
"""

import asyncio
import time
from collections import deque

from hone_operator.objects.resources import Key
from hone_operator.observability.metrics import Metrics

FIRST_RETRY_SECONDS, LONGEST_RETRY_SECONDS = 0.5, 300.0


class WorkQueue:
    """A queue for workers that call `get`, work, and `done`. A key that is added meanwhile is queued again at `done`.

    With `whole=False`, a key is added for a pass over the progress alone; any other `add` makes it a full pass.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._urgent: deque[Key] = deque()
        self._ready: deque[Key] = deque()
        self._queued: dict[Key, float] = {}
        self._working: dict[Key, float] = {}
        self._last_done = time.monotonic()
        self._again: dict[Key, bool] = {}
        self._for_part: set[Key] = set()
        self._failures: dict[Key, int] = {}
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._wakeup = asyncio.Semaphore(0)
        metrics.watch_queue(lambda: len(self._queued), self._working.values)

    def add(self, key: Key, *, urgent: bool = False, whole: bool = True) -> None:
        """Queue the key. Urgent keys come before all others. `whole`: whether it gets a full pass (see the class)."""
        if key in self._working:
            self._again[key] = whole or self._again.get(key, False)
            return
        if whole:
            self._for_part.discard(key)
        elif key not in self._queued:
            self._for_part.add(key)
        if key not in self._queued:
            self._queued[key] = time.monotonic()
            self._metrics.queue_adds.inc()
            (self._urgent if urgent else self._ready).append(key)
            self._wakeup.release()

    def add_after(self, key: Key, seconds: float) -> None:
        """Queue the key after some seconds; of several calls, the earliest moment counts."""
        loop = asyncio.get_running_loop()
        due = loop.time() + seconds
        if timer := self._timers.get(key):
            if timer.when() <= due:
                return
            timer.cancel()
        self._timers[key] = loop.call_at(due, self._due, key)

    def retry(self, key: Key, at_least: float = 0.0) -> float:
        """Queue a key that failed, with exponential backoff. Return the seconds until then.

        `at_least`: the seconds of the API server's Retry-After; a timer that is due earlier is cancelled.
        """
        self._metrics.queue_retries.inc()
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        seconds = max(min(FIRST_RETRY_SECONDS * 2.0 ** min(failures, 20), LONGEST_RETRY_SECONDS), at_least)
        if at_least and (timer := self._timers.pop(key, None)):
            timer.cancel()
        self.add_after(key, seconds)
        return seconds

    def succeeded(self, key: Key) -> None:
        """Reset the backoff of the key: its next failure begins with the shortest delay."""
        self._failures.pop(key, None)

    def forget(self, key: Key) -> None:
        """Cancel timers and backoff of an object that is gone."""
        self.succeeded(key)
        if timer := self._timers.pop(key, None):
            timer.cancel()

    async def get(self) -> Key:
        await self._wakeup.acquire()
        key = (self._urgent or self._ready).popleft()
        now = time.monotonic()
        self._metrics.queue_wait.observe(now - self._queued.pop(key))
        self._working[key] = now
        return key

    def is_working(self, key: Key) -> bool:
        """Return whether a worker has the key."""
        return key in self._working

    def wants_whole(self, key: Key) -> bool:
        """Return whether a worker has the key for a full pass."""
        return key not in self._for_part

    def done(self, key: Key) -> None:
        self._last_done = time.monotonic()
        self._metrics.queue_work.observe(self._last_done - self._working.pop(key))
        self._for_part.discard(key)
        if key in self._again:
            self.add(key, whole=self._again.pop(key))

    def ages(self) -> tuple[float, float, float]:
        """Return, in seconds, the longest pass under way, the longest wait, and the time since a pass ended."""
        now = time.monotonic()
        longest_pass = max((now - begun for begun in self._working.values()), default=0.0)
        longest_wait = max((now - queued for queued in self._queued.values()), default=0.0)
        return longest_pass, longest_wait, now - self._last_done

    def _due(self, key: Key) -> None:
        self._timers.pop(key, None)
        self.add(key)
