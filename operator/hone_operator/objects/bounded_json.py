"""Parse JSON of any depth. A hostile object can be nested 10,000 levels deep, and Python's parser fails at hundreds."""

import json
import re
from typing import Any

from pydantic_core import from_json

# Deeper values become null. No valid object comes near this depth.
MAX_DEPTH = 200

# An unterminated text counts as one that ends with the data: a new try at each quote would take quadratic time.
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?|[\[{]|[\]}]', re.DOTALL)


def load_bounded_json(data: bytes) -> Any:
    """Return parsed JSON as `json.loads` does, but cut off values that are nested too deep instead of raising.

    pydantic's parser takes a third of the time, and equal texts share memory. It is stricter: data that it refuses,
    such as half of a surrogate pair, is left to Python's parser.
    """
    try:
        return from_json(data, cache_strings="all")
    except ValueError:
        return _loads_leniently(data)


def _loads_leniently(data: bytes) -> Any:
    try:
        return json.loads(data)
    except RecursionError:
        return json.loads(_truncate_depth(data))


def is_deeper(value: object, levels: int) -> bool:
    """Return whether dicts and lists are nested in each other more than `levels` deep."""
    layer = [value]
    for _ in range(levels + 1):
        layer = [
            inner
            for outer in layer
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not layer:
            return False
    return any(isinstance(each, dict | list) for each in layer)


def _truncate_depth(data: bytes) -> bytes:
    pieces, begin, depth = [], 0, 0
    for token in _TOKEN.finditer(data):
        match data[token.start()]:
            case 0x5B | 0x7B:
                depth += 1
                if depth == MAX_DEPTH + 1:
                    pieces += [data[begin : token.start()], b"null"]
            case 0x5D | 0x7D:
                if depth == MAX_DEPTH + 1:
                    begin = token.end()
                depth -= 1
    return b"".join([*pieces, data[begin:]])
