"""The meaning of values in Arrow columns, for rows from Parquet files and from the hub. Pure.

Arrow has one type for all values of a column, so a struct gives each row the keys of every other row, with the value
null. Such a key counts as absent: otherwise a tool call would be learned with arguments that nobody wrote. One null is
kept, the `content` of a message, as `messages` keeps it for rows of JSON. Values of the JSON type are parsed; they hold
what was written, including nulls. Next: `formats`, which shapes the rows.
"""

import json
from collections.abc import Callable
from typing import Any

import pyarrow
from pyarrow import types

from hone_trainer.data.readers.json_rows import refuse_repeated_keys

Reader = Callable[[Any], Any]

_LISTS = (types.is_list, types.is_large_list, types.is_fixed_size_list, types.is_list_view, types.is_large_list_view)


def make_readers(schema: pyarrow.Schema, *, is_json_parsed: bool = False) -> dict[str, Reader]:
    """Return what to apply to the values of columns, as Arrow's `as_py` gives them; a column left out stays as it is.

    `is_json_parsed`: values of the JSON type are no longer strings. A reader raises ValueError and RecursionError.
    """
    found = {}
    for field in schema:
        is_list = _is_list(field.type)
        element = field.type.value_type if is_list else field.type
        kept_nulls = frozenset({"content"}) if is_list else frozenset()
        read = _make_reader(element, is_json_parsed, kept_nulls)
        if read:
            found[field.name] = _read_each(read) if is_list else read
    return found


def _make_reader(
    kind: pyarrow.DataType, is_json_parsed: bool, kept_nulls: frozenset[str] = frozenset()
) -> Reader | None:
    """Return the reader of one type, None: its values stay as they are. `kept_nulls`: nulls of a struct that count."""
    if isinstance(kind, pyarrow.JsonType):
        return None if is_json_parsed else _parse
    if types.is_struct(kind):
        return _read_struct({field.name: _make_reader(field.type, is_json_parsed) for field in kind.fields}, kept_nulls)
    if types.is_map(kind):
        read = _make_reader(kind.item_type, is_json_parsed)
        return _read_values(read) if read else None
    if _is_list(kind):
        read = _make_reader(kind.value_type, is_json_parsed)
        return _read_each(read) if read else None
    return None


def _is_list(kind: pyarrow.DataType) -> bool:
    return any(is_kind(kind) for is_kind in _LISTS)


def _parse(value: Any) -> Any:
    return json.loads(value, object_pairs_hook=refuse_repeated_keys) if isinstance(value, str) else value


def _read_struct(fields: dict[str, Reader | None], kept_nulls: frozenset[str]) -> Reader:
    def read(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {
            key: own(item) if (own := fields.get(key)) else item
            for key, item in value.items()
            if item is not None or key in kept_nulls
        }

    return read


def _read_values(read: Reader) -> Reader:
    return lambda value: {key: read(item) for key, item in value.items()} if isinstance(value, dict) else value


def _read_each(read: Reader) -> Reader:
    return lambda value: [read(item) for item in value] if isinstance(value, list) else value
