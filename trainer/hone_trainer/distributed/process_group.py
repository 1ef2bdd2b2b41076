"""The process group of training: what processes exchange in addition to the gradients, which torch handles.

Until the first process has prepared everything, the others only wait at a TCP store (`GroupBootstrap`). Then all join
and get a `ProcessGroup` with collectives on CPU tensors over gloo, so that no GPU has to wait.
"""

import os
import time
from datetime import timedelta
from typing import Any, TypeVar

import torch
from hone_api.reasons import INVALID_SPEC, HoneError
from torch import distributed
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from hone_trainer.distributed.ranks import Rank

Value = TypeVar("Value")

# For collectives in which all wait for one process (a download, a checkpoint). No shorter timeout is needed: the
# launcher notices a process that ends.
PREPARATION_TIMEOUT = timedelta(days=7)
# How long nodes wait for each other at the start, and processes in a collective of training.
COLLECTIVE_TIMEOUT = timedelta(minutes=30)
_PREPARED_KEY = "prepared"


class ProcessGroup:
    """All training processes. All of them must call each method, except for the properties, in the same order."""

    def __init__(self, rank: int = 0, world_size: int = 1, gloo_group: Any = None) -> None:
        self.rank = rank
        self.world_size = world_size
        self._gloo_group = gloo_group  # a gloo group, so that no device has to wait

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank == 0

    def is_set_on_any_rank(self, flag: bool) -> bool:
        """Return whether the flag is set in any process."""
        return max(self.all_gather(float(flag))) > 0

    def all_gather(self, value: float) -> list[float]:
        """Return the value of each process, by rank."""
        if self.world_size == 1:
            return [value]
        found = torch.zeros(self.world_size, dtype=torch.float64)
        found[self.rank] = value
        distributed.all_reduce(found, group=self._gloo_group)
        return [float(one) for one in found]

    def broadcast(self, value: Value | None) -> Value:
        """Return the first process's value in all processes."""
        values = [value]
        if self.world_size > 1:
            distributed.broadcast_object_list(values, src=0, group=self._gloo_group)
        found = values[0]
        assert found is not None
        return found

    def barrier(self) -> None:
        """Wait until all processes are here."""
        if self.world_size > 1:
            distributed.barrier(group=self._gloo_group)


class GroupBootstrap:
    """The processes before they form a group: the first one prepares alone, and the others wait for it."""

    def __init__(self, rank: Rank) -> None:
        """Open the TCP store of the first process. Raises HoneError InvalidSpec when a GPU is missing."""
        gpus = torch.cuda.device_count()
        if 0 < gpus < rank.local_world_size:
            raise HoneError(
                INVALID_SPEC,
                f"spec.resources.gpus is {rank.local_world_size}, and torch sees {gpus}",
                remedy=f"Set it to {gpus}, or make more GPUs visible.",
            )
        self._rank = rank
        self._gpu_count = gpus
        # Libraries that find these variables would use a process group that does not exist yet.
        for name in rank.to_environ():
            os.environ.pop(name, None)
        is_main = rank.rank == 0
        self._store = TCPStore(
            rank.master_addr, rank.master_port, is_master=is_main, wait_for_workers=False, timeout=COLLECTIVE_TIMEOUT
        )

    def wait_for_rank_zero(self) -> None:
        """Wait until the first process joins. Poll at short intervals, so that signals are handled in between."""
        while self._rank.rank and not self._store.check([_PREPARED_KEY]):
            time.sleep(0.2)

    def create_group(self) -> ProcessGroup:
        """Create the process group of all processes and return it."""
        rank = self._rank
        if rank.rank == 0:
            self._store.set(_PREPARED_KEY, "")
        os.environ.update(rank.to_environ())
        if self._gpu_count:
            torch.cuda.set_device(rank.local_rank)
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if self._gpu_count else "gloo",
            store=PrefixStore("group", self._store),
            rank=rank.rank,
            world_size=rank.world_size,
            timeout=COLLECTIVE_TIMEOUT,
        )
        return ProcessGroup(
            rank.rank, rank.world_size, distributed.new_group(backend="gloo", timeout=PREPARATION_TIMEOUT)
        )
