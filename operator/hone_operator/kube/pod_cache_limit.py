"""The memory that all cached pods share, and which of them are evicted where it is too small.

Anybody may create pods with Hone's labels, and one process works for all users. In: a pod, its owner, and its size.
Out: whether there is room for it, and which pods it evicts. The largest namespace loses pods first, and in it the
largest owner. So a flood of pods harms only its own namespace and object.
"""

from collections.abc import Hashable
from typing import NamedTuple

from hone_operator.kube.ranking import Ranking


class Place(NamedTuple):
    """Namespace and name of a pod."""

    namespace: str
    name: str


class Room:
    """A number of bytes that namespaces, and the owners in each, share."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._total = 0
        self._pods: dict[Place, tuple[Hashable, int]] = {}
        self._spaces = Ranking[str]()
        self._owners: dict[str, Ranking[Hashable]] = {}
        self._places: dict[tuple[str, Hashable], Ranking[Place]] = {}

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
        self._spaces.add(space, -size)
        self._owners[space].add(owner, -size)
        self._places[space, owner].add(place, -size)
        if not self._places[space, owner]:
            del self._places[space, owner]
        if not self._owners[space]:
            del self._owners[space]

    def _add(self, place: Place, owner: Hashable, size: int) -> None:
        space = place.namespace
        self._pods[place] = owner, size
        self._total += size
        self._spaces.add(space, size)
        self._owners.setdefault(space, Ranking()).add(owner, size)
        self._places.setdefault((space, owner), Ranking()).add(place, size)

    def _find_victim(self, space: str, owner: Hashable, needed: int) -> Place | None:
        """Return the largest pod of the namespace and owner with most, if that is more than this owner would have."""
        if not self._spaces:
            return None
        largest, least = self._spaces.find_largest(), 0
        if largest == space or self._spaces.get_amount(largest) <= self._spaces.get_amount(space) + needed:
            if space not in self._owners:
                return None
            largest, least = space, self._owners[space].get_amount(owner) + needed
        found = self._owners[largest].find_largest()
        if self._owners[largest].get_amount(found) <= least or (largest, found) == (space, owner):
            return None
        return self._places[largest, found].find_largest()
