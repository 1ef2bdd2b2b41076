"""The order of the rows, where several processes must agree on it."""

from collections.abc import Callable, Iterator

import torch
from transformers.trainer_pt_utils import LengthGroupedSampler


class GroupedByLength(LengthGroupedSampler):
    """Transformers' own draws from each process's random numbers, which dropout moves on at different speeds: from the
    second epoch on some rows would be trained on twice and others not at all. Here they follow from seed and epoch.
    """

    def __init__(self, batch_size: int, lengths: list[int], seed: int, epoch: Callable[[], int]) -> None:
        """`batch_size` is that of all processes together, so that those of a step have rows of a length."""
        super().__init__(batch_size, lengths=lengths)
        self._seed = seed
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self.generator = torch.Generator().manual_seed(self._seed + self._epoch())
        return super().__iter__()  # type: ignore[no-untyped-call,no-any-return]
