"""Rows grouped by length: each row is taken once, batches have like lengths, and every process has the same order."""

from pathlib import Path

import pytest
import torch
from hone_trainer.training.sampler import ReplayedGroups, SeededGroups, group_by_length
from transformers.trainer_pt_utils import get_length_grouped_indices

GROUP = 50


def make_lengths(rows: int, seed: int = 0) -> list[int]:
    return torch.randint(1, 1000, (rows,), generator=torch.Generator().manual_seed(seed)).tolist()


def split(order: list[int], batch: int) -> list[list[int]]:
    return [order[start : start + batch] for start in range(0, len(order), batch)]


@pytest.mark.parametrize("batch", [1, 3, 8, 64])
@pytest.mark.parametrize("rows", [0, 1, 2, 7, 8, 63, 64, 65, 500, 1003])
def test_every_row_is_taken_once_in_full_batches_with_the_longest_first(rows: int, batch: int) -> None:
    lengths = make_lengths(rows)
    order = group_by_length(lengths, batch, GROUP, torch.Generator().manual_seed(1))
    assert sorted(order) == list(range(rows))
    full = split(order, batch)[: rows // batch]
    if full:
        assert max(lengths[row] for row in full[0]) == max(lengths[row] for found in full for row in found)


@pytest.mark.parametrize(("rows", "batch", "group"), [(1000, 8, 400), (4000, 8, 400), (100, 8, 48), (10, 8, 8)])
def test_the_rows_of_as_many_batches_as_documented_are_sorted_together(rows: int, batch: int, group: int) -> None:
    """Draw the same rows as the sampler and sort each group: its batches are those of the order."""
    lengths = make_lengths(rows)
    order = group_by_length(lengths, batch, GROUP, torch.Generator().manual_seed(2))
    drawn = torch.randperm(rows, generator=torch.Generator().manual_seed(2)).tolist()
    expected = [
        found
        for together in split(drawn, group)
        for found in split(sorted(together, key=lambda row: lengths[row], reverse=True), batch)
    ]
    assert sorted(split(order, batch)) == sorted(expected)
    assert split(order, batch) != expected or rows < 2 * batch


def test_batches_are_padded_less_than_those_of_transformers() -> None:
    lengths = make_lengths(1000)

    def computed(order: list[int]) -> int:
        return sum(len(rows) * max(lengths[row] for row in rows) for rows in split(order, 8))

    for seed in range(5):
        torch.manual_seed(seed)
        assert computed(group_by_length(lengths, 8, GROUP)) < computed(get_length_grouped_indices(lengths, 8))


@pytest.mark.parametrize("group_batches", [None, GROUP])
def test_the_order_of_several_processes_depends_on_seed_epoch_and_rows_a_step_alone(group_batches: int | None) -> None:
    lengths = make_lengths(203)
    orders = []
    for noise, (batch, processes) in enumerate([(4, 2), (2, 4), (8, 1)]):
        torch.manual_seed(noise)
        orders.append(list(SeededGroups(batch * processes, lengths, group_batches, 7, lambda: 1)))
    assert orders[0] == orders[1] == orders[2]
    assert orders[0] != list(SeededGroups(8, lengths, group_batches, 7, lambda: 2))
    assert orders[0] != list(SeededGroups(8, lengths, group_batches, 8, lambda: 1))


@pytest.mark.parametrize("group_batches", [None, GROUP])
def test_a_resumed_process_takes_the_rows_of_the_epoch_in_the_same_order(
    tmp_path: Path, group_batches: int | None
) -> None:
    lengths = make_lengths(203)
    torch.manual_seed(3)
    before = ReplayedGroups(8, lengths, group_batches, lambda: 2)
    expected = list(before)
    before.save(tmp_path)
    torch.manual_seed(4)
    resumed = ReplayedGroups(8, lengths, group_batches, lambda: 2)
    resumed.load(tmp_path)
    assert list(resumed) == expected
    assert list(resumed) == expected


def test_without_a_number_of_batches_the_order_is_that_of_transformers() -> None:
    lengths = make_lengths(203)
    torch.manual_seed(5)
    expected = get_length_grouped_indices(lengths, 8)
    torch.manual_seed(5)
    assert list(ReplayedGroups(8, lengths, None, lambda: 0)) == expected
