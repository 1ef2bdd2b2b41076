"""Asking pods how it goes, beside the workers, so that a pod that doesn't answer holds up nothing."""

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import aiohttp

from hone_operator.resources import Key

EVERY_SECONDS, LATER_EVERY_SECONDS = 3.0, 13.0
CLOSE_SECONDS, CLOSELY_AT_ONCE = 120.0, 50
"""Some pods are asked closely at first, when someone may be looking and a short run would be over unseen."""
TIMEOUT = aiohttp.ClientTimeout(total=5)
AT_ONCE = 100
LARGEST_ANSWER = 1 << 20

logger = logging.getLogger(__name__)


class Poller:
    """One task for each pod that a plan wants asked; `on_news` is called when an answer differs from the last."""

    def __init__(self, on_news: Callable[[Key], None]) -> None:
        self._on_news = on_news
        self._tasks: dict[Key, dict[str, asyncio.Task[None]]] = {}
        self._answers: dict[Key, dict[str, Any]] = {}
        self._heard: dict[Key, dict[str, datetime]] = {}
        self._close: deque[float] = deque()
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._session = aiohttp.ClientSession(timeout=TIMEOUT)

    def want(self, key: Key, urls: dict[str, str]) -> None:
        """From now on, ask exactly these: URLs by pod uid."""
        tasks = self._tasks.setdefault(key, {})
        for uid in [uid for uid in tasks if uid not in urls]:
            tasks.pop(uid).cancel()
            self._answers.get(key, {}).pop(uid, None)
            self._heard.get(key, {}).pop(uid, None)
        for uid, url in urls.items():
            if uid not in tasks:
                self._heard.setdefault(key, {})[uid] = datetime.now(UTC)
                tasks[uid] = asyncio.create_task(self._ask(key, uid, url))
        if not tasks:
            del self._tasks[key]
            self._answers.pop(key, None)
            self._heard.pop(key, None)

    def answers(self, key: Key) -> dict[str, Any]:
        """The newest JSON by pod uid."""
        return self._answers.get(key, {})

    def heard(self, key: Key) -> dict[str, datetime]:
        """When each pod last answered, by uid; before its first answer, since when it is asked."""
        return self._heard.get(key, {})

    async def close(self) -> None:
        for key in list(self._tasks):
            self.want(key, {})
        await self._session.close()

    async def _ask(self, key: Key, uid: str, url: str) -> None:
        close_until, delay = self._close_until(), random.random()
        while True:
            async with self._slots:
                answer = await self._get(url)
            known = self._answers.setdefault(key, {})
            if answer is not None:
                self._heard[key][uid] = datetime.now(UTC)
            if answer is not None and answer != known.get(uid):
                known[uid] = answer
                self._on_news(key)
            # The first delay is by chance: after a restart, all begin together.
            await asyncio.sleep(delay * (EVERY_SECONDS if time.monotonic() < close_until else LATER_EVERY_SECONDS))
            delay = 1.0

    def _close_until(self) -> float:
        now = time.monotonic()
        while self._close and self._close[0] < now:
            self._close.popleft()
        if len(self._close) >= CLOSELY_AT_ONCE:
            return now
        self._close.append(now + CLOSE_SECONDS)
        return self._close[-1]

    async def _get(self, url: str) -> Any:
        """None when there is no usable answer: the next one will do."""
        try:
            async with self._session.get(url) as response:
                if response.status != 200 or (response.content_length or 0) > LARGEST_ANSWER:
                    return None
                return await response.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            logger.debug("%s does not answer: %s", url, error)
            return None
