"""The order in which the rows of several datasets are trained on, by the library's own functions.

In: the number of rows of each dataset, the weights and the seed. Out: positions in the concatenated rows. Without
weights the datasets follow each other. With weights, the dataset of each row is chosen at random, until one of them has
no more rows: so the shares are those of the weights, and no row comes twice. `preparation.rows` calls this.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from datasets import Dataset, concatenate_datasets, interleave_datasets

# The default of interleave_datasets. all_exhausted_without_replacement would use all rows whatever the weights are, and
# Trainer shuffles them; all_exhausted repeats rows, without an upper bound of their number.
STOPPING_STRATEGY = "first_exhausted"


def find_order(sizes: Sequence[int], weights: Sequence[float] | None, seed: int) -> np.ndarray:
    """Return, for each row of the mixture, its position in the rows of all datasets one after the other."""
    starts = np.cumsum([0, *sizes[:-1]])
    if weights is None or len(sizes) == 1:
        return np.arange(sum(sizes))
    # With a fingerprint, so that the library computes none: it can't pickle Arrow's tables on Python 3.12.
    numbered = [
        Dataset(pa.table({"row": np.arange(start, start + size)}), fingerprint=f"rows-{start}")
        for start, size in zip(starts, sizes, strict=True)
    ]
    mixed = interleave_datasets(
        numbered,
        probabilities=[weight / sum(weights) for weight in weights],
        seed=seed,
        stopping_strategy=STOPPING_STRATEGY,
    )
    return np.array(mixed["row"])


def join_rows(parts: Sequence[Dataset], order: np.ndarray) -> Dataset:
    """Return the rows of several datasets in an order of `find_order`."""
    if len(parts) == 1:
        return parts[0]
    features = parts[0].features
    joined = concatenate_datasets([part if part.features == features else part.cast(features) for part in parts])
    is_in_order = len(order) == len(joined) and bool((np.diff(order) == 1).all())
    return joined if is_in_order else joined.select(order)
