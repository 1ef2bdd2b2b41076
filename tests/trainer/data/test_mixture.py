"""The order of the rows of several datasets."""

import numpy as np
from datasets import Dataset, concatenate_datasets, interleave_datasets
from hone_trainer.data.mixture import find_order, join_rows
from hypothesis import given, settings
from hypothesis import strategies as st


@st.composite
def mixtures(draw: st.DrawFn) -> tuple[list[int], list[float] | None]:
    sizes = draw(st.lists(st.integers(1, 40), min_size=1, max_size=5))
    weight = st.floats(0.01, 100)
    return sizes, draw(st.none() | st.lists(weight, min_size=len(sizes), max_size=len(sizes)))


@settings(max_examples=60, deadline=None)
@given(mixtures(), st.integers(0, 2**31 - 1))
def test_rows_are_those_of_the_library_and_none_comes_twice(
    mixture: tuple[list[int], list[float] | None], seed: int
) -> None:
    sizes, weights = mixture
    parts = [Dataset.from_dict({"text": [f"{part}/{row}" for row in range(size)]}) for part, size in enumerate(sizes)]
    order = find_order(sizes, weights, seed)
    if weights is None:
        expected = concatenate_datasets(parts)
    else:
        expected = interleave_datasets(parts, probabilities=[weight / sum(weights) for weight in weights], seed=seed)
    found = join_rows(parts, order)["text"]
    assert list(found) == list(expected["text"])
    assert len(set(found)) == len(found)
    for part, size in enumerate(sizes):
        rows = [int(text.partition("/")[2]) for text in found if text.startswith(f"{part}/")]
        assert rows == list(range(len(rows))), "each dataset's rows are in their order"
        assert weights is not None or len(rows) == size


def test_types_of_columns_are_those_of_the_first_dataset() -> None:
    narrow, wide = (Dataset.from_dict({"labels": np.array([-100, 5], dtype)}) for dtype in (np.int32, np.int64))
    joined = join_rows([narrow, wide], np.arange(4))
    assert joined.features == narrow.features
    assert joined["labels"][:] == [-100, 5, -100, 5]
