"""Rows in Parquet files, and how many values their columns have.

Rows are read in batches, and `arrow_values` turns their values into what the user wrote. `count_parquet` counts in
Arrow, without objects of Python, for the survey of columns in `row_streams`.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow
from hone_api.reasons import DATASET_INVALID, HoneError
from pyarrow import parquet

from hone_trainer.data.readers.arrow_values import Reader, make_readers
from hone_trainer.data.readers.json_rows import Row

_BATCH_ROWS = 1000
_COUNTED_ROWS = 10_000
# What one value may raise when it becomes an object of Python.
_VALUE_ERRORS = (pyarrow.ArrowException, ValueError, OverflowError, TypeError, KeyError, RecursionError)


def read_parquet(path: Path, name: str) -> Iterator[Row]:
    """Yield the rows. Raises HoneError DatasetInvalid naming the file, and the row where there is one."""
    number = 0
    readers: dict[str, Reader] | None = None
    for batch in _read_batches(path, name, _BATCH_ROWS):
        readers = make_readers(batch.schema) if readers is None else readers
        for row in _as_dicts(batch, readers, name, number):
            number += 1
            yield f"{name}, row {number}", row


def count_parquet(path: Path, name: str, limit: int | None) -> Iterator[tuple[int, dict[str, int]]]:
    """Yield, for batches of the first `limit` rows, how many rows there are, and for each column how many are not null.

    A file without rows yields its columns once. Raises HoneError DatasetInvalid.
    """
    left = limit
    with _name_errors(name):
        columns = parquet.read_schema(path).names
    yield 0, dict.fromkeys(columns, 0)
    for batch in _read_batches(path, name, min(_COUNTED_ROWS, limit or _COUNTED_ROWS)):
        part = batch.slice(0, left)
        yield len(part), {column: len(part) - part.column(column).null_count for column in columns}
        left = None if left is None else left - len(part)
        if left == 0:
            return


def _read_batches(path: Path, name: str, rows: int) -> Iterator[pyarrow.RecordBatch]:
    with _name_errors(name), parquet.ParquetFile(path) as file:
        names = file.schema_arrow.names
        repeated = next((column for column, count in Counter(names).items() if count > 1), None)
        if repeated is not None:
            raise HoneError(DATASET_INVALID, f"{name} has the column {repeated} twice", remedy="Rename one of them.")
        yield from file.iter_batches(batch_size=rows)


def _as_dicts(batch: pyarrow.RecordBatch, readers: dict[str, Reader], name: str, before: int) -> list[dict[str, Any]]:
    try:
        found: list[dict[str, Any]] = batch.to_pylist(maps_as_pydicts="strict")
        for column, read in readers.items():
            for row in found:
                row[column] = read(row[column])
    except _VALUE_ERRORS:
        for index in range(len(batch)):
            for column in batch.schema.names:
                try:
                    value = batch.column(column)[index].as_py(maps_as_pydicts="strict")
                    readers.get(column, _keep)(value)
                except _VALUE_ERRORS as error:
                    is_map = isinstance(error, KeyError)
                    reason = f"a map has a key twice: {error.args[0]}" if is_map else error
                    raise HoneError(
                        DATASET_INVALID,
                        f"{name}, row {before + index + 1}, column {column} can't be read: {reason}",
                        remedy="Write the column again without it, or leave the column out of the file.",
                    ) from None
        raise
    return found


def _keep(value: Any) -> Any:
    return value


@contextmanager
def _name_errors(name: str) -> Iterator[None]:
    """Turn Arrow's exceptions in the context into DatasetInvalid, including system errors without a number."""
    try:
        yield
    except pyarrow.ArrowException as error:
        raise HoneError(DATASET_INVALID, f"{name} is not Parquet: {error}") from None
    except OSError as error:
        if error.errno is not None:
            raise
        raise HoneError(DATASET_INVALID, f"{name} is not Parquet: {error}") from None
