"""Reading files of rows: jsonl, json, csv, parquet, txt. Every row comes with where it stands, for error messages."""

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hone_api.reasons import DATASET_INVALID, HoneError

Row = tuple[str, dict[str, Any]]
"""Where a row stands (`train.jsonl, line 3`), and its columns."""


def read(paths: list[Path]) -> Iterator[Row]:
    """Every row of the files, in their order. Raises HoneError DatasetInvalid naming file and line."""
    for path in paths:
        yield from READERS[path.suffix.lower()](path)


def _jsonl(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                where = f"{path.name}, line {number}"
                yield where, _object(where, _parse(where, line))


def _json(path: Path) -> Iterator[Row]:
    found = _parse(path.name, path.read_bytes())
    if not isinstance(found, list):
        raise HoneError(
            DATASET_INVALID,
            f"{path.name} holds {_name(found)} where a list of rows should be",
            remedy="Write [{…}, {…}], or one row a line in a file that ends with .jsonl.",
        )
    for number, row in enumerate(found, start=1):
        where = f"{path.name}, row {number}"
        yield where, _object(where, row)


def _csv(path: Path) -> Iterator[Row]:
    with _text(path) as file:
        reader = csv.DictReader(file, strict=True)
        try:
            for row in reader:
                where = f"{path.name}, line {reader.line_num}"
                if None in row:
                    raise HoneError(DATASET_INVALID, f"{where} has more fields than the header names")
                yield where, dict(row)
        except (csv.Error, UnicodeDecodeError) as error:
            raise HoneError(DATASET_INVALID, f"{path.name}, line {reader.line_num + 1} is not CSV: {error}") from None


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    from pyarrow import parquet

    try:
        number = 0
        for batch in parquet.ParquetFile(path).iter_batches(batch_size=1000):
            for row in batch.to_pylist():
                number += 1
                yield f"{path.name}, row {number}", row
    except pyarrow.ArrowException as error:
        raise HoneError(DATASET_INVALID, f"{path.name} is not Parquet: {error}") from None


def count_parquet(path: Path, limit: int | None) -> Iterator[tuple[int, dict[str, int]]]:
    """For batches of the first `limit` rows: how many rows, and in how many of them each column is not null."""
    import pyarrow
    from pyarrow import parquet

    try:
        left = limit
        for batch in parquet.ParquetFile(path).iter_batches(batch_size=min(10_000, limit or 10_000)):
            part = batch.slice(0, left)
            yield len(part), {name: len(part) - part.column(name).null_count for name in part.schema.names}
            left = None if left is None else left - len(part)
            if left == 0:
                return
    except pyarrow.ArrowException as error:
        raise HoneError(DATASET_INVALID, f"{path.name} is not Parquet: {error}") from None


def _txt(path: Path) -> Iterator[Row]:
    with _text(path) as file:
        try:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield f"{path.name}, line {number}", {"text": line.rstrip("\n")}
        except UnicodeDecodeError as error:
            raise HoneError(DATASET_INVALID, f"{path.name} is not UTF-8: {error}") from None


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
    ".txt": _txt,
}
"""Reader by a file's ending."""


def _text(path: Path) -> Any:
    return path.open(encoding="utf-8-sig", newline="" if path.suffix.lower() == ".csv" else None)


def _parse(where: str, text: bytes) -> Any:
    try:
        return json.loads(text.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        place = f" (line {error.lineno}, column {error.colno})" if error.lineno > 1 else f" (column {error.colno})"
        raise HoneError(DATASET_INVALID, f"{where} is not JSON: {error.msg}{place}") from None
    except UnicodeDecodeError as error:
        raise HoneError(DATASET_INVALID, f"{where} is not UTF-8: {error}") from None


def _object(where: str, row: Any) -> dict[str, Any]:
    if isinstance(row, dict):
        return row
    raise HoneError(DATASET_INVALID, f"{where} holds {_name(row)} where an object with the row's columns should be")


def _name(value: Any) -> str:
    return f"{json.dumps(value, ensure_ascii=False)[:40]}"
