"""Turns for work of which only so much may run at once: clients take turns, and each client's work runs in order.

In: work, and the clients that wait for it. Out: the work's result, when its turn has come. In order of arrival alone, a
client with much work would delay all others; with the newest first, clients that keep coming would. `FairQueue` decides
which work is next, and `FairTurns` waits for it. trial_pool.py and guidance.py use one FairTurns for each lane.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Hashable
from typing import Generic, TypeVar

Item = TypeVar("Item", bound=Hashable)
Result = TypeVar("Result")


class FairQueue(Generic[Item]):
    """Items that wait, each for at least one client. An item waits behind at most one item of each other client."""

    def __init__(self) -> None:
        # From the client whose turn is next to the one whose turn was last; the items of each in order of arrival.
        self._items: dict[str, dict[Item, None]] = {}
        self._clients: dict[Item, set[str]] = {}

    def __contains__(self, item: Item) -> bool:
        return item in self._clients

    def __len__(self) -> int:
        return len(self._clients)

    def count_items(self, client: str) -> int:
        return len(self._items.get(client, ()))

    def add(self, item: Item, client: str) -> None:
        """Let a client wait for an item, for which others may wait already."""
        self._items.setdefault(client, {})[item] = None
        self._clients.setdefault(item, set()).add(client)

    def discard(self, item: Item, client: str) -> None:
        """Remove an item from what a client waits for, and from the queue if it was the last client."""
        if client not in self._clients.get(item, ()):
            return
        self._clients[item].remove(client)
        if not self._clients[item]:
            del self._clients[item]
        del self._items[client][item]
        if not self._items[client]:
            del self._items[client]

    def remove(self, item: Item) -> None:
        """Remove an item for all clients that wait for it."""
        for client in list(self._clients.get(item, ())):
            self.discard(item, client)

    def pop(self) -> Item | None:
        """Remove and return the first item of the client whose turn it is; None if the queue is empty."""
        if not self._items:
            return None
        client, items = next(iter(self._items.items()))
        item = next(iter(items))
        self.remove(item)
        if client in self._items:
            self._items[client] = self._items.pop(client)
        return item


class FairTurns(Generic[Item]):
    """Lets `max_running` pieces of work run at the same time. Used from one event loop at a time."""

    def __init__(self, max_running: int) -> None:
        self._free_count = max_running
        self._queue = FairQueue[Item]()
        self._turns: dict[Item, asyncio.Future[None]] = {}

    def count_waiting(self, client: str) -> int:
        """Return for how many pieces of work that have not begun a client waits."""
        return self._queue.count_items(client)

    async def run_in_turn(self, item: Item, clients: Collection[str], work: Callable[[], Awaitable[Result]]) -> Result:
        """Wait for a turn, and return what the work returns. Raises what the work raises.

        item: names the work; one item waits only once. Raises CancelledError if all clients leave before its turn.
        """
        if self._free_count:
            self._free_count -= 1
        else:
            await self._wait_for_turn(item, clients)
        try:
            return await work()
        finally:
            self._wake_next()

    async def run_shielded(self, item: Item, client: str, work: Callable[[], Awaitable[Result]]) -> Result:
        """Run work of one client in its turn. If the caller is cancelled, work that has begun keeps its turn."""
        running = asyncio.create_task(self.run_in_turn(item, [client], work))
        try:
            return await asyncio.shield(running)
        finally:
            self.leave(item, client)

    def join(self, item: Item, client: str) -> None:
        """Let another client wait for an item, if it still waits for its turn."""
        if item in self._queue:
            self._queue.add(item, client)

    def leave(self, item: Item, client: str) -> bool:
        """Stop a client's waiting. Cancel work that has not begun if it was the last one; return whether it was."""
        self._queue.discard(item, client)
        return item not in self._queue and item in self._turns and self._turns[item].cancel()

    async def _wait_for_turn(self, item: Item, clients: Collection[str]) -> None:
        turn = self._turns[item] = asyncio.get_running_loop().create_future()
        for client in clients:
            self._queue.add(item, client)
        try:
            await turn
        except asyncio.CancelledError:
            self._queue.remove(item)
            if turn.done() and not turn.cancelled():  # it came at the same moment
                self._wake_next()
            raise
        finally:
            del self._turns[item]

    def _wake_next(self) -> None:
        while (item := self._queue.pop()) is not None:
            if not (turn := self._turns[item]).done():
                turn.set_result(None)
                return
        self._free_count += 1
