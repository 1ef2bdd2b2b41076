"""The order of the rows where transformers groups them by length.

Transformers draws this order from torch's global generator when an epoch begins. By then a resumed process has drawn
other numbers than the process before it, and several processes have drawn different numbers. Both would train some rows
twice in an epoch and others not at all. The classes here keep the order the same, in trainer.py.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from transformers.trainer_pt_utils import LengthGroupedSampler

# The file of a checkpoint with the generator's state from which the order of its epoch was drawn.
ORDER = "order.pt"


class ReplayedGroups(LengthGroupedSampler):
    """The order of transformers for one process, drawn again in the same way when an epoch is resumed.

    `epoch` returns the number of the epoch that begins.
    """

    def __init__(self, batch_size: int, lengths: list[int], epoch: Callable[[], int]) -> None:
        super().__init__(batch_size, lengths=lengths)
        self._epoch = epoch
        self._drawn: tuple[int, torch.Tensor] | None = None

    def __iter__(self) -> Iterator[int]:
        epoch = self._epoch()
        self.generator = None
        if self._drawn and self._drawn[0] == epoch:
            self.generator = torch.Generator().set_state(self._drawn[1])
        else:
            self._drawn = (epoch, torch.get_rng_state())
        return super().__iter__()  # type: ignore[no-untyped-call,no-any-return]

    def save(self, folder: Path) -> None:
        """Write the generator's state at the beginning of the epoch into a checkpoint."""
        if self._drawn:
            torch.save({"epoch": self._drawn[0], "state": self._drawn[1]}, folder / ORDER)

    def load(self, folder: Path) -> None:
        """Read what `save` wrote, so that the same epoch gets the same order again."""
        if (folder / ORDER).exists():
            found = torch.load(folder / ORDER, weights_only=True)
            self._drawn = (found["epoch"], found["state"])


class SeededGroups(LengthGroupedSampler):
    """An order that depends only on seed and epoch: the same in all processes."""

    def __init__(self, batch_size: int, lengths: list[int], seed: int, epoch: Callable[[], int] = lambda: 0) -> None:
        """Set the order up. `batch_size` counts all processes together, so that the rows of a step have similar
        lengths.
        """
        super().__init__(batch_size, lengths=lengths)
        self._seed = seed
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self.generator = torch.Generator().manual_seed(self._seed + self._epoch())
        return super().__iter__()  # type: ignore[no-untyped-call,no-any-return]
