"""The order of the rows where they are grouped by length.

Transformers draws this order from torch's global generator when an epoch begins. By then a resumed process has drawn
other numbers than the process before it, and several processes have drawn different numbers. Both would train some rows
twice in an epoch and others not at all. The classes here keep the order the same, in trainer.py. With `group_batches`
they draw the order of `group_by_length`, which pads less; without it that of transformers.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from transformers.trainer_pt_utils import LengthGroupedSampler

# The file of a checkpoint with the generator's state from which the order of its epoch was drawn.
ORDER = "order.pt"


def group_by_length(
    lengths: list[int], batch_size: int, group_batches: int, generator: torch.Generator | None = None
) -> list[int]:
    """Return an order of the rows whose batches have rows of similar lengths.

    Rows in random order are split into groups of `group_batches` batches, but at most half of all batches, and each
    group is sorted by length. The batches are then shuffled, so that long ones are spread over the epoch. The batch
    with the longest row is the first, so that a lack of memory is found at once; an incomplete batch is the last.
    """
    full = len(lengths) // batch_size
    group = max(min(group_batches, full // 2), 1) * batch_size
    drawn = torch.randperm(len(lengths), generator=generator).tolist()
    rows: list[int] = []
    for start in range(0, len(drawn), group):
        rows += sorted(drawn[start : start + group], key=lambda row: lengths[row], reverse=True)
    batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    order = [batches[at] for at in torch.randperm(full, generator=generator).tolist()] + batches[full:]
    # In a sorted group the first row of a batch is its longest.
    longest = max(range(full), key=lambda at: lengths[order[at][0]], default=0)
    order[:1], order[longest : longest + 1] = order[longest : longest + 1], order[:1]
    return [row for batch in order for row in batch]


class _Groups(LengthGroupedSampler):
    """An order of rows that are grouped by length. `group_batches`: the batches whose rows are sorted together."""

    def __init__(self, batch_size: int, lengths: list[int], group_batches: int | None) -> None:
        super().__init__(batch_size, lengths=lengths)
        self._group_batches = group_batches

    def __iter__(self) -> Iterator[int]:
        if self._group_batches is None:
            return super().__iter__()  # type: ignore[no-untyped-call,no-any-return]
        return iter(group_by_length(self.lengths, self.batch_size, self._group_batches, self.generator))


class ReplayedGroups(_Groups):
    """The order of one process, drawn again in the same way when an epoch is resumed.

    `epoch` returns the number of the epoch that begins.
    """

    def __init__(
        self, batch_size: int, lengths: list[int], group_batches: int | None, epoch: Callable[[], int]
    ) -> None:
        super().__init__(batch_size, lengths, group_batches)
        self._epoch = epoch
        self._drawn: tuple[int, torch.Tensor] | None = None

    def __iter__(self) -> Iterator[int]:
        epoch = self._epoch()
        self.generator = None
        if self._drawn and self._drawn[0] == epoch:
            self.generator = torch.Generator().set_state(self._drawn[1])
        else:
            self._drawn = (epoch, torch.get_rng_state())
        return super().__iter__()

    def save(self, folder: Path) -> None:
        """Write the generator's state at the beginning of the epoch into a checkpoint."""
        if self._drawn:
            torch.save({"epoch": self._drawn[0], "state": self._drawn[1]}, folder / ORDER)

    def load(self, folder: Path) -> None:
        """Read what `save` wrote, so that the same epoch gets the same order again."""
        if (folder / ORDER).exists():
            found = torch.load(folder / ORDER, weights_only=True)
            self._drawn = (found["epoch"], found["state"])


class SeededGroups(_Groups):
    """An order that depends only on seed and epoch: the same in all processes."""

    def __init__(
        self,
        batch_size: int,
        lengths: list[int],
        group_batches: int | None,
        seed: int,
        epoch: Callable[[], int] = lambda: 0,
    ) -> None:
        """Set the order up. `batch_size` counts all processes together, so that the rows of a step have similar
        lengths.
        """
        super().__init__(batch_size, lengths, group_batches)
        self._seed = seed
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self.generator = torch.Generator().manual_seed(self._seed + self._epoch())
        return super().__iter__()
