"""The process group of training: what processes exchange in addition to the gradients, which torch handles.

Until the first process has prepared everything, the others only wait at a TCP store (`Meeting`). Then all join and get
a
`Group` with collectives on CPU tensors over gloo, so that no GPU has to wait.
"""

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

# For collectives in which all wait for one process (a download, a checkpoint). No shorter timeout is needed: the
# launcher notices a process that ends.
WEEK = timedelta(days=7)
# How long nodes wait for each other at the start, and processes in a collective of training.
TOGETHER = timedelta(minutes=30)
_PREPARED = "prepared"


class Group:
    """All training processes. All of them must call each method, except for the properties, in the same order."""

    def __init__(self, rank: int = 0, size: int = 1, patient: Any = None) -> None:
        self.rank = rank
        self.size = size
        self._patient = patient  # a gloo group, so that no device has to wait

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set in any process."""
        return max(self.each(float(flag))) > 0

    def each(self, value: float) -> list[float]:
        """Return the value of each process, by rank."""
        if self.size == 1:
            return [value]
        found = torch.zeros(self.size, dtype=torch.float64)
        found[self.rank] = value
        distributed.all_reduce(found, group=self._patient)
        return [float(one) for one in found]

    def from_first(self, value: Value | None) -> Value:
        """Return the first process's value in all processes."""
        values = [value]
        if self.size > 1:
            distributed.broadcast_object_list(values, src=0, group=self._patient)
        found = values[0]
        assert found is not None
        return found

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.size > 1:
            distributed.barrier(group=self._patient)


class Meeting:
    """The processes before they form a group: the first one prepares alone, and the others wait for it."""

    def __init__(self, place: Place) -> None:
        """Open the TCP store of the first process. Raises HoneError InvalidSpec when a GPU is missing."""
        gpus = torch.cuda.device_count()
        if 0 < gpus < place.local_size:
            raise HoneError(
                INVALID_SPEC,
                f"spec.resources.gpus is {place.local_size}, and torch sees {gpus}",
                remedy=f"Set it to {gpus}, or make more GPUs visible.",
            )
        self._place = place
        self._gpus = gpus
        # Libraries that find these variables would use a process group that does not exist yet.
        for name in place.to_environ():
            os.environ.pop(name, None)
        leads = place.rank == 0
        self._store = TCPStore(place.address, place.port, is_master=leads, wait_for_workers=False, timeout=TOGETHER)

    def wait_for_the_first(self) -> None:
        """Wait until the first process joins. Poll at short intervals, so that signals are handled in between."""
        while self._place.rank and not self._store.check([_PREPARED]):
            time.sleep(0.2)

    def join(self) -> Group:
        """Create the process group of all processes and return it."""
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
