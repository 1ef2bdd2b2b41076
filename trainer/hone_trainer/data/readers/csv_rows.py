"""Rows in CSV files: columns separated by commas, with a header.

Every cell is a string; missing cells at the end of a row are None. Text is never dropped silently: a row with more
fields than the header, and text in a column without a name, are refused. `row_files` calls `read_csv`.
"""

import csv
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from hone_api.reasons import DATASET_INVALID, HoneError

from hone_trainer.data.readers.json_rows import Row
from hone_trainer.data.readers.text_lines import read_lines

# The csv module refuses fields of more than 131,072 characters unless a larger limit is set.
_LONGEST_FIELD = 2**31 - 1
_NUMBER = re.compile(r"[+-]?\d+")
SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}


def read_csv(path: Path, name: str) -> Iterator[Row]:
    """Yield a row for each record, at the line where it begins.

    A column without a name is left out if it is empty, or if it comes first and holds numbers, as pandas' index does.

    Raises HoneError DatasetInvalid naming file and line.
    """
    csv.field_size_limit(_LONGEST_FIELD)
    reader = csv.reader((line for _, line in read_lines(path, name)), strict=True)
    header: list[str] | None = None
    while True:
        first_line = reader.line_num + 1
        where = f"{name}, line {first_line}"
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise _explain(error, name, first_line, reader.line_num) from None
        if not fields:
            continue
        if header is None:
            header = _check_header(where, fields)
        elif len(fields) > len(header):
            raise HoneError(
                DATASET_INVALID,
                f"{where} has {len(fields)} fields, and the header names {len(header)}",
                remedy='Put text that has commas in quotes: "one, two".',
            )
        else:
            _refuse_unnamed(where, header, fields)
            cells: list[str | None] = [*fields, *[None] * (len(header) - len(fields))]
            yield where, {column: cell for column, cell in zip(header, cells, strict=True) if column}


def suggest_header(columns: list[str]) -> str:
    """Return what to do about a header that looks as if it was written for other separators; empty: nothing."""
    for separator, plural in SEPARATORS.items():
        if len(columns) == 1 and separator in columns[0]:
            return f"The columns seem to be separated by {plural}: separate them by commas."
    spaced = next((column for column in columns if column != column.strip()), None)
    return f"The header names the column {spaced!r}: remove the spaces around its name." if spaced else ""


def _check_header(where: str, names: list[str]) -> list[str]:
    if re.fullmatch(r"sep=.?", names[0].strip(), re.IGNORECASE) and not any(names[1:]):
        raise HoneError(
            DATASET_INVALID,
            f"{where} is {','.join(names)}, by which Excel knows the separator, where the header should be",
            remedy="Remove the line, and separate the columns by commas.",
        )
    repeated = next((column for column, count in Counter(names).items() if column and count > 1), None)
    if repeated is not None:
        raise HoneError(
            DATASET_INVALID,
            f"{where}: the header names the column {repeated} twice",
            remedy="Rename or remove one of the two columns.",
        )
    return names


def _refuse_unnamed(where: str, header: list[str], fields: list[str]) -> None:
    """Raise HoneError DatasetInvalid when text would be lost: often the rest of a text that has commas."""
    for number, (column, cell) in enumerate(zip(header, fields, strict=False), start=1):
        if not column.strip() and cell.strip() and not (number == 1 and _NUMBER.fullmatch(cell.strip())):
            raise HoneError(
                DATASET_INVALID,
                f"{where} has {cell.strip()[:60]!r} in field {number}, a column that has no name in the header",
                remedy='Put text that has commas in quotes, "one, two"; or name the column, or remove it.',
            )


def _explain(error: csv.Error, name: str, first_line: int, last_line: int) -> HoneError:
    if "unexpected end of data" in str(error):
        return HoneError(
            DATASET_INVALID,
            f"{name}, line {first_line} is not CSV: a quote that opens in this row is never closed",
            remedy='Close it, and double each quote inside a field: "she said ""yes""".',
        )
    return HoneError(DATASET_INVALID, f"{name}, line {last_line} is not CSV: {error}")
