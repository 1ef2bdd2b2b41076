"""The memory that all cached pods share, and which of them are evicted where it is too small.

Anybody may create pods with Hone's labels, and one process works for all users. In: a pod, its owner, and its size.
Out: whether there is room for it, and which pods it evicts. The largest namespace loses pods first, and in it the
largest owner. So a flood of pods harms only its own namespace and object.
"""

from collections import defaultdict
from collections.abc import Hashable
from typing import NamedTuple


class Place(NamedTuple):
    """Namespace and name of a pod."""

    namespace: str
    name: str


class Room:
    """A number of bytes that namespaces, and the owners in each, share."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._pods: dict[Place, tuple[Hashable, int]] = {}
        self._owners: dict[str, dict[Hashable, dict[Place, int]]] = defaultdict(dict)
        self._owner_sums: dict[tuple[str, Hashable], int] = defaultdict(int)
        self._sums: dict[str, int] = defaultdict(int)
        self._total = 0

    def take(self, place: Place, owner: Hashable, needed: int) -> list[Place] | None:
        """Return the pods that are evicted for this one; None where this one gets no room.

        `needed`: its size in bytes.
        """
        self.release(place)
        gone: list[tuple[Place, Hashable, int]] = []
        while self._total + needed > self._limit_bytes:
            victim = self._find_victim(place.namespace, owner, needed)
            if victim is None:
                for each in gone:
                    self._add(*each)
                return None
            gone.append((victim, *self._pods[victim]))
            self.release(victim)
        self._add(place, owner, needed)
        return [each[0] for each in gone]

    def release(self, place: Place) -> None:
        """Free the room of a pod."""
        if place not in self._pods:
            return
        owner, size = self._pods.pop(place)
        space = place.namespace
        self._total -= size
        self._sums[space] -= size
        self._owner_sums[space, owner] -= size
        del self._owners[space][owner][place]
        if not self._owners[space][owner]:
            del self._owners[space][owner], self._owner_sums[space, owner]
        if not self._owners[space]:
            del self._owners[space], self._sums[space]

    def _add(self, place: Place, owner: Hashable, size: int) -> None:
        self._pods[place] = owner, size
        self._total += size
        self._sums[place.namespace] += size
        self._owner_sums[place.namespace, owner] += size
        self._owners[place.namespace].setdefault(owner, {})[place] = size

    def _find_victim(self, space: str, owner: Hashable, needed: int) -> Place | None:
        """Return the largest pod of the namespace and owner with most, if that is more than this owner would have."""
        if not self._sums:
            return None
        largest = max(self._sums, key=lambda each: self._sums[each])
        if largest == space or self._sums[largest] <= self._sums.get(space, 0) + needed:
            if space not in self._owners:
                return None
            largest, least = space, self._owner_sums.get((space, owner), 0) + needed
        else:
            least = 0
        found = max(self._owners[largest], key=lambda each: self._owner_sums[largest, each])
        if self._owner_sums[largest, found] <= least or (largest, found) == (space, owner):
            return None
        of_owner = self._owners[largest][found]
        return max(of_owner, key=lambda each: of_owner[each])
