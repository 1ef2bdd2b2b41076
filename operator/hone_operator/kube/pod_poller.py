"""Ask pods how they are doing, in tasks next to the workers, so that a pod that does not answer holds up nothing.

What a pod answers is untrusted: an image is anybody's choice. An answer has a limit of bytes and of seconds, leads
nowhere else (no redirect, no proxy), and only what its model has of it is kept (`pod_answers.py`). The plans decide
which pods are asked; snapshots.py hands them the newest answers.
"""

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from hone_operator.kube import bounded_get
from hone_operator.kube.pod_answers import read_answer
from hone_operator.objects.resources import Key

EVERY_SECONDS, LATER_EVERY_SECONDS = 3.0, 13.0
# Some pods are asked closely at first, when someone may be looking and a short run would be over unseen.
CLOSE_SECONDS, CLOSELY_AT_ONCE = 120.0, 50
AT_ONCE = 100

logger = logging.getLogger(__name__)


@dataclass
class _Poll:
    """One pod that is asked. `heard`: when it last gave a usable answer; before its first, since when it is asked."""

    url: str
    heard: datetime = field(default_factory=lambda: datetime.now(UTC))
    answer: Any = None
    task: asyncio.Task[None] | None = None


class Poller:
    """One task for each pod that a plan wants asked; `on_news` is called when an answer differs from the last."""

    def __init__(self, on_news: Callable[[Key], None]) -> None:
        self._on_news = on_news
        self._polls: dict[Key, dict[str, _Poll]] = {}
        self._close: deque[float] = deque()
        self._slots = asyncio.Semaphore(AT_ONCE)

    def want(self, key: Key, urls: dict[str, str]) -> None:
        """From now on, ask exactly these URLs, by pod uid. A pod that has another address now is another one to ask."""
        polls = self._polls.setdefault(key, {})
        for uid in [uid for uid, poll in polls.items() if poll.url != urls.get(uid)]:
            if task := polls.pop(uid).task:
                task.cancel()
        for uid, url in urls.items():
            if uid not in polls:
                poll = polls[uid] = _Poll(url)
                poll.task = asyncio.create_task(self._ask(key, poll))
        if not polls:
            del self._polls[key]

    def answers(self, key: Key) -> dict[str, Any]:
        """The newest JSON by pod uid."""
        return {uid: poll.answer for uid, poll in self._polls.get(key, {}).items() if poll.answer is not None}

    def heard(self, key: Key) -> dict[str, datetime]:
        """When each pod last gave a usable answer, by uid; before its first one, since when it is asked."""
        return {uid: poll.heard for uid, poll in self._polls.get(key, {}).items()}

    async def close(self) -> None:
        for key in list(self._polls):
            self.want(key, {})

    async def _ask(self, key: Key, poll: _Poll) -> None:
        close_until, delay = self._close_until(), random.random()
        while True:
            try:
                async with self._slots:
                    answer = await self._get(key, poll.url)
                self._take(key, poll, answer)
            except Exception:  # an unforeseen answer must not end the task: the pod would never be asked again
                logger.exception("asking %s", poll.url)
            # The first delay is by chance: after a restart, all begin together.
            await asyncio.sleep(delay * (EVERY_SECONDS if time.monotonic() < close_until else LATER_EVERY_SECONDS))
            delay = 1.0

    def _take(self, key: Key, poll: _Poll, answer: Any) -> None:
        if answer is None:
            return
        poll.heard = datetime.now(UTC)
        if answer != poll.answer:
            poll.answer = answer
            self._on_news(key)

    def _close_until(self) -> float:
        now = time.monotonic()
        while self._close and self._close[0] < now:
            self._close.popleft()
        if len(self._close) >= CLOSELY_AT_ONCE:
            return now
        self._close.append(now + CLOSE_SECONDS)
        return self._close[-1]

    async def _get(self, key: Key, url: str) -> Any:
        """None when there is no usable answer: the next one will do."""
        try:
            return read_answer(key, await bounded_get.get(url))
        except (bounded_get.Unusable, TimeoutError, ValueError, OSError) as error:
            logger.debug("%s gives no usable answer: %s", url, error)
            return None
