"""The processes that train together: what they tell each other, beside what torch does for the gradients."""

import os
import time
from datetime import timedelta
from typing import Any, TypeVar

import torch
from hone_api.reasons import INVALID_SPEC, HoneError
from torch import distributed
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from hone_trainer.distributed.ranks import Place

Value = TypeVar("Value")

WEEK = timedelta(days=7)
"""What waits for one process (a download, a checkpoint) has no timeout of its own: a process that ends is noticed."""
TOGETHER = timedelta(minutes=30)
"""How long nodes wait for each other at the start, and processes in a collective of training."""
_PREPARED = "prepared"


class Group:
    """All processes. Every method but the properties is to be called by each of them, in the same order."""

    def __init__(self, rank: int = 0, size: int = 1, patient: Any = None) -> None:
        self.rank = rank
        self.size = size
        self._patient = patient  # of gloo, so that no device has to wait

    @property
    def leads(self) -> bool:
        """Whether this is the one that writes and shows."""
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        return max(self.each(float(flag))) > 0

    def each(self, value: float) -> list[float]:
        """The value of each process, by rank."""
        if self.size == 1:
            return [value]
        found = torch.zeros(self.size, dtype=torch.float64)
        found[self.rank] = value
        distributed.all_reduce(found, group=self._patient)
        return [float(one) for one in found]

    def from_first(self, value: Value | None) -> Value:
        """The value of the first process, in all."""
        values = [value]
        if self.size > 1:
            distributed.broadcast_object_list(values, src=0, group=self._patient)
        found = values[0]
        assert found is not None
        return found

    def wait(self) -> None:
        """Until all are here."""
        if self.size > 1:
            distributed.barrier(group=self._patient)


class Meeting:
    """Before the processes are a group: the first prepares, as if it were alone, and the others wait for it."""

    def __init__(self, place: Place) -> None:
        """Open the store that the first process keeps. Raises HoneError InvalidSpec when a GPU is lacking."""
        gpus = torch.cuda.device_count()
        if 0 < gpus < place.local_size:
            raise HoneError(
                INVALID_SPEC,
                f"spec.resources.gpus is {place.local_size}, and torch sees {gpus}",
                remedy=f"Set it to {gpus}, or make more GPUs visible.",
            )
        self._place = place
        self._gpus = gpus
        # While libraries see these, they take part in a group that is not there yet.
        for name in place.to_environ():
            os.environ.pop(name, None)
        leads = place.rank == 0
        self._store = TCPStore(place.address, place.port, is_master=leads, wait_for_workers=False, timeout=TOGETHER)

    def wait_for_the_first(self) -> None:
        """Until it joins. In short looks, between which a signal is heard."""
        while self._place.rank and not self._store.check([_PREPARED]):
            time.sleep(0.2)

    def join(self) -> Group:
        """All processes together."""
        place = self._place
        if place.rank == 0:
            self._store.set(_PREPARED, "")
        os.environ.update(place.to_environ())
        if self._gpus:
            torch.cuda.set_device(place.local_rank)
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if self._gpus else "gloo",
            store=PrefixStore("group", self._store),
            rank=place.rank,
            world_size=place.size,
            timeout=TOGETHER,
        )
        return Group(place.rank, place.size, distributed.new_group(backend="gloo", timeout=WEEK))
