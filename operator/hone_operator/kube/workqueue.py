"""A work queue of keys, as in client-go: a key is queued once, is never with two workers, and is retried with backoff.

In: keys of objects to reconcile, from watch_handlers.py. Out: one key at a time to each worker.
"""

import asyncio
import time
from collections import deque
from dataclasses import dataclass
from enum import IntEnum

from hone_operator.objects.resources import Key
from hone_operator.observability.metrics import Metrics

FIRST_RETRY_SECONDS, LONGEST_RETRY_SECONDS = 0.5, 300.0


class Scope(IntEnum):
    """How much of an object is reconciled. The larger scope includes the smaller one."""

    PROGRESS = 1
    FULL = 2


@dataclass
class _Item:
    """A scope, and since when a key waits for it or a worker has it."""

    scope: Scope
    since: float


class WorkQueue:
    """A queue for workers that call `get`, work, and `done`. A key that is added meanwhile is queued again at `done`.

    A key that is added several times is reconciled once, with the largest scope.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._urgent: deque[Key] = deque()
        self._ready: deque[Key] = deque()
        # The keys to reconcile: in one of the queues, or (while a worker has them) to be queued at `done`.
        self._dirty: dict[Key, _Item] = {}
        self._working: dict[Key, _Item] = {}
        self._last_done = time.monotonic()
        self._failures: dict[Key, int] = {}
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._wakeup = asyncio.Semaphore(0)
        metrics.watch_queue(
            lambda: len(self._urgent) + len(self._ready), lambda: [item.since for item in self._working.values()]
        )

    def add(self, key: Key, *, urgent: bool = False, scope: Scope = Scope.FULL) -> None:
        """Queue the key. Urgent keys come before all others."""
        if item := self._dirty.get(key):
            item.scope = max(item.scope, scope)
            return
        self._dirty[key] = _Item(scope, time.monotonic())
        if key not in self._working:
            self._push(key, self._urgent if urgent else self._ready)

    def add_after(self, key: Key, seconds: float) -> None:
        """Queue the key after some seconds; of several calls, the earliest moment counts."""
        loop = asyncio.get_running_loop()
        due = loop.time() + seconds
        if timer := self._timers.get(key):
            if timer.when() <= due:
                return
            timer.cancel()
        self._timers[key] = loop.call_at(due, self._add_due, key)

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

    def reset_backoff(self, key: Key) -> None:
        """Reset the backoff of the key: its next failure begins with the shortest delay."""
        self._failures.pop(key, None)

    def forget(self, key: Key) -> None:
        """Cancel timers and backoff of an object that is gone."""
        self.reset_backoff(key)
        if timer := self._timers.pop(key, None):
            timer.cancel()

    async def get(self) -> Key:
        await self._wakeup.acquire()
        key = (self._urgent or self._ready).popleft()
        item = self._dirty.pop(key)
        now = time.monotonic()
        self._metrics.queue_wait.observe(now - item.since)
        self._working[key] = _Item(item.scope, now)
        return key

    def is_working(self, key: Key) -> bool:
        """Return whether a worker has the key."""
        return key in self._working

    def needs_full(self, key: Key) -> bool:
        """Return whether the key is to be reconciled in full: unless it is with a worker for its progress only."""
        item = self._working.get(key)
        return item is None or item.scope == Scope.FULL

    def done(self, key: Key) -> None:
        self._last_done = time.monotonic()
        self._metrics.queue_work.observe(self._last_done - self._working.pop(key).since)
        if item := self._dirty.get(key):
            item.since = self._last_done
            self._push(key, self._ready)

    def measure_ages(self) -> tuple[float, float, float]:
        """Return, in seconds, the longest reconcile under way, the longest wait, and the time since one ended."""
        now = time.monotonic()
        longest_work = max((now - item.since for item in self._working.values()), default=0.0)
        waiting = [item.since for key, item in self._dirty.items() if key not in self._working]
        return longest_work, max((now - since for since in waiting), default=0.0), now - self._last_done

    def _push(self, key: Key, queue: deque[Key]) -> None:
        self._metrics.queue_adds.inc()
        queue.append(key)
        self._wakeup.release()

    def _add_due(self, key: Key) -> None:
        self._timers.pop(key, None)
        self.add(key)
