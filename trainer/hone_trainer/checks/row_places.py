"""From a row's number in a tokenized dataset to where the user finds it: file and line."""

import itertools
import json
from collections.abc import Iterable
from typing import Any

from datasets import Dataset

from hone_trainer.data.dataset import LoadedDataset


def find_places(data: LoadedDataset, given: Dataset, indices: Iterable[int]) -> dict[int, str]:
    """Return the place of each of these rows of `given`, a dataset of `data`, in at most one pass over the source."""
    sorted_indices = sorted(set(indices))
    if not sorted_indices:
        return {}
    if data.evaluation is None or len(data.streams) > 1:
        start = len(data.train) if given is data.evaluation else 0
        return _find_by_position(data, start, sorted_indices)
    return _find_by_content(data, given, sorted_indices)


def _find_by_position(data: LoadedDataset, start: int, indices: list[int]) -> dict[int, str]:
    rows = itertools.islice(data.iterate_rows(), start, start + indices[-1] + 1)
    numbers = set(indices)
    return {index: where for index, (where, _) in enumerate(rows) if index in numbers}


def _find_by_content(data: LoadedDataset, given: Dataset, indices: list[int]) -> dict[int, str]:
    """Find rows by their content, since evalFraction draws rows at random and their positions carry no information."""
    keys = {index: _make_key(given[index]) for index in indices}
    missing = set(keys.values())
    found: dict[str, str] = {}
    for where, row in data.iterate_rows():
        key = _make_key(row)
        if key in missing:
            missing.remove(key)
            found[key] = where
        if not missing:
            break
    return {index: found.get(key, f"row {index + 1}") for index, key in keys.items()}


def _make_key(row: dict[str, Any]) -> str:
    return json.dumps(_remove_none(row), sort_keys=True, default=str)


def _remove_none(value: Any) -> Any:
    """Remove keys with the value None, which Arrow adds when other rows have them."""
    if isinstance(value, dict):
        return {key: _remove_none(item) for key, item in value.items() if item is not None}
    return [_remove_none(item) for item in value] if isinstance(value, list) else value
