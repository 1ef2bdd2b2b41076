"""Turns for work of which only so much may run at once: whoever came last has the next one.

In order of arrival, a burst of slow work would hold up all who come after it until each of them has given up.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

Result = TypeVar("Result")


class LifoSemaphore:
    """Lets `max_running` pieces of work run at the same time. Used from one event loop at a time."""

    def __init__(self, max_running: int) -> None:
        self._free_count = max_running
        self._waiting: dict[asyncio.Task[Any] | None, asyncio.Future[None]] = {}

    async def run_in_turn(self, work: Callable[[], Awaitable[Result]]) -> Result:
        """Wait for a turn, and return what the work returns. Raises what the work raises."""
        if self._free_count:
            self._free_count -= 1
        else:
            task, turn = asyncio.current_task(), asyncio.get_running_loop().create_future()
            self._waiting[task] = turn
            try:
                await turn
            except asyncio.CancelledError:
                self._waiting.pop(task, None)
                if not turn.cancelled():  # it came at the same moment
                    self._wake_next()
                raise
        try:
            return await work()
        finally:
            self._wake_next()

    def cancel_waiting(self, task: asyncio.Task[Any]) -> bool:
        """Cancel a task if it waits for its turn, and return whether it did; one that has its turn continues."""
        return task in self._waiting and task.cancel()

    def _wake_next(self) -> None:
        while self._waiting:
            _, turn = self._waiting.popitem()
            if not turn.done():
                turn.set_result(None)
                return
        self._free_count += 1
