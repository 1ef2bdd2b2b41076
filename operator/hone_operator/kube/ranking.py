"""Find the key with the largest amount without a search through all keys.

In: changes of the amounts. Out: the key with the largest. pod_cache_limit.py asks for it whenever a pod finds no room,
on the event loop that all users share, so the answer must not become slower because somebody created many pods.
"""

import heapq
from collections.abc import Hashable
from itertools import count
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

_SPARE = 16
"""So many outdated entries are kept without a comparison to how many are valid."""


class Ranking(Generic[K]):
    """Amounts above 0 of keys, and the key with the largest."""

    __slots__ = ("_amounts", "_heap", "_numbers")

    def __init__(self) -> None:
        self._amounts: dict[K, int] = {}
        # The negative amount, a number that no other entry has, and the key. Entries of former amounts are outdated.
        self._heap: list[tuple[int, int, K]] = []
        self._numbers = count()

    def __bool__(self) -> bool:
        return bool(self._amounts)

    def get_amount(self, key: K) -> int:
        return self._amounts.get(key, 0)

    def add(self, key: K, amount: int) -> None:
        """Add to the key's amount. A key without an amount is forgotten."""
        total = self._amounts.get(key, 0) + amount
        if total <= 0:
            self._amounts.pop(key, None)
            return
        self._amounts[key] = total
        heapq.heappush(self._heap, (-total, next(self._numbers), key))
        if len(self._heap) > 2 * len(self._amounts) + _SPARE:
            self._heap = [(-each, next(self._numbers), key) for key, each in self._amounts.items()]
            heapq.heapify(self._heap)

    def find_largest(self) -> K:
        """Return the key with the largest amount; of equal ones, the one that has it for the longest time.

        Raises IndexError when there is none.
        """
        while True:
            negative, _, key = self._heap[0]
            if self._amounts.get(key) == -negative:
                return key
            heapq.heappop(self._heap)
