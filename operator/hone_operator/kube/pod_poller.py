"""Poll pods for their progress or models, in tasks apart from the workers, so that a silent pod delays nothing.

Answers are untrusted: users choose the images. An answer has a limit of bytes and of seconds, no redirect is followed
and no proxy used, and only the fields of its model are kept (`pod_answers.py`). The plans decide which pods are polled;
snapshots.py passes the newest answers to them.
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
# This many new pods are polled often at first: a user may be watching, and a short run would end unnoticed.
CLOSE_SECONDS, CLOSELY_AT_ONCE = 120.0, 50
AT_ONCE = 100

logger = logging.getLogger(__name__)


@dataclass
class _Poll:
    """One polled pod. `last_answer_at`: when it last gave a usable answer; before the first one, when polling began."""

    url: str
    last_answer_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    answer: Any = None
    task: asyncio.Task[None] | None = None


class Poller:
    """One task for each pod that a plan wants polled; `on_news` is called when an answer differs from the last."""

    def __init__(self, on_news: Callable[[Key], None]) -> None:
        self._on_news = on_news
        self._polls: dict[Key, dict[str, _Poll]] = {}
        self._close: deque[float] = deque()
        self._slots = asyncio.Semaphore(AT_ONCE)

    def want(self, key: Key, urls: dict[str, str]) -> None:
        """Poll exactly these URLs from now on, by pod uid. A pod whose address changed is polled as a new one."""
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

    def get_answers(self, key: Key) -> dict[str, Any]:
        """Return the newest answers, by pod uid."""
        return {uid: poll.answer for uid, poll in self._polls.get(key, {}).items() if poll.answer is not None}

    def get_last_answer_times(self, key: Key) -> dict[str, datetime]:
        """Return when each pod last gave a usable answer, by uid; before its first one, when polling began."""
        return {uid: poll.last_answer_at for uid, poll in self._polls.get(key, {}).items()}

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
            except Exception:  # an unforeseen answer must not end the task: the pod would never be polled again
                logger.exception("asking %s", poll.url)
            # The first delay is random: after a restart, all tasks begin together.
            await asyncio.sleep(delay * (EVERY_SECONDS if time.monotonic() < close_until else LATER_EVERY_SECONDS))
            delay = 1.0

    def _take(self, key: Key, poll: _Poll, answer: Any) -> None:
        if answer is None:
            return
        poll.last_answer_at = datetime.now(UTC)
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
        """Return the pod's answer; None when it is not usable: the next one will do."""
        try:
            return read_answer(key, await bounded_get.get_bounded(url))
        except (bounded_get.Unusable, TimeoutError, ValueError, OSError) as error:
            logger.debug("%s gives no usable answer: %s", url, error)
            return None
