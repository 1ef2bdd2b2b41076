"""Rows in files of JSON: one object per line (jsonl), or one list of objects (json).

Python's parser accepts more than a dataset can hold: repeated keys, half of a surrogate pair, integers of any length;
and it stops at deep nesting with an error of its own. Each of these is refused here with its place.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hone_api.reasons import DATASET_INVALID, HoneError

from hone_trainer.data.readers.text_lines import decode_utf8

# The place of a row (`train.jsonl, line 3`), and its columns.
Row = tuple[str, dict[str, Any]]

_SHOWN_CHARACTERS = 40


class RepeatedKeyError(ValueError):
    """Raised for an object of JSON with a repeated key; `key` is that key."""

    def __init__(self, key: str) -> None:
        super().__init__(f"it has the key {show_json(key)} twice in one object")
        self.key = key


def read_jsonl(path: Path, name: str) -> Iterator[Row]:
    """Yield the row of each line that is not blank. Raises HoneError DatasetInvalid naming file and line."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"{name}, line {number}"
            is_list = number == 1 and line.lstrip(b"\xef\xbb\xbf \t").startswith(b"[")
            remedy = "A file that holds one list of rows must end with .json: rename it." if is_list else ""
            text = decode_utf8(line, name, number).removeprefix("\ufeff")  # of files that were joined
            row = _parse(where, line, text, remedy or "Write one row a line, as a JSON object.")
            yield where, _as_row(where, row, remedy)


def read_json(path: Path, name: str) -> Iterator[Row]:
    """Yield the rows of a list. Raises HoneError DatasetInvalid naming file and row."""
    data = path.read_bytes()
    remedy = "Write [{…}, {…}]. A file with one row a line must end with .jsonl: rename it."
    found = _parse(name, data, decode_utf8(data, name, 1), remedy)
    if not isinstance(found, list):
        raise HoneError(
            DATASET_INVALID, f"{name} holds {show_json(found)} where a list of rows should be", remedy=remedy
        )
    for number, row in enumerate(found, start=1):
        where = f"{name}, row {number}"
        yield where, _as_row(where, row, "")


def show_json(value: Any) -> str:
    """Return the beginning of a value as JSON."""
    try:
        shown = json.dumps(value, ensure_ascii=False)
    except RecursionError:
        return f"a deeply nested {type(value).__name__}"
    return shown if len(shown) <= _SHOWN_CHARACTERS else f"{shown[:_SHOWN_CHARACTERS]}…"


def refuse_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object of these keys and values, for json.loads. Raises RepeatedKeyError."""
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        raise RepeatedKeyError(next(key for key in keys if keys.count(key) > 1))
    return found


def _parse(where: str, data: bytes, text: str, remedy: str) -> Any:
    try:
        found = json.loads(text, object_pairs_hook=refuse_repeated_keys)
    except json.JSONDecodeError as error:
        place = f" (line {error.lineno}, column {error.colno})" if error.lineno > 1 else f" (column {error.colno})"
        raise HoneError(DATASET_INVALID, f"{where} is not JSON: {error.msg}{place}", remedy=remedy) from None
    except RepeatedKeyError as error:
        raise HoneError(
            DATASET_INVALID,
            f"{where} has the key {show_json(error.key)} twice in one object",
            remedy="Remove one of the two: only one could be kept.",
        ) from None
    except RecursionError:
        raise HoneError(DATASET_INVALID, f"{where} is nested too deeply to be read") from None
    except ValueError:  # the only other one that the parser raises: an integer with too many digits
        raise HoneError(
            DATASET_INVALID,
            f"{where} has an integer of more than {sys.get_int_max_str_digits()} digits",
            remedy="Write it as a string, or remove it.",
        ) from None
    if b"\\ud" in data or b"\\uD" in data:
        _refuse_surrogates(where, found)
    return found


def _refuse_surrogates(where: str, value: Any) -> None:
    """Raise HoneError if any string or key holds half of a surrogate pair, which no encoding of text can hold."""
    rows = enumerate(value, start=1) if isinstance(value, list) else [(0, value)]
    for number, row in rows:
        for column, cell in row.items() if isinstance(row, dict) else [("", row)]:
            half = next((char for char in json.dumps([column, cell], ensure_ascii=False) if _is_surrogate(char)), None)
            if half:
                place = where + (f", row {number}" if number else "") + (f", column {column}" if column else "")
                raise HoneError(
                    DATASET_INVALID,
                    f"{place.encode('utf-8', 'backslashreplace').decode()} holds \\u{ord(half):04x}, which is one half "
                    "of a character that was cut in two",
                    remedy="Remove the half, or restore the character, as in \\ud83d\\ude00.",
                )


def _is_surrogate(char: str) -> bool:
    return "\ud800" <= char <= "\udfff"


def _as_row(where: str, row: Any, remedy: str) -> dict[str, Any]:
    if isinstance(row, dict):
        return row
    found = f"{where} holds {show_json(row)} where an object with the row's columns should be"
    raise HoneError(DATASET_INVALID, found, remedy=remedy)
