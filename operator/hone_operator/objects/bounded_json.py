"""JSON of any depth. A hostile object can be nested 10,000 deep, and Python's parser ends at some hundreds."""

import json
import re
from typing import Any

from pydantic_core import from_json

# What lies deeper becomes null. No object that keeps the contract comes near.
DEEPEST = 200

# A text without an end is taken as one that goes to the end: trying again at each quote in it would take ever longer.
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"?|[\[{]|[\]}]', re.DOTALL)


def loads(data: bytes) -> Any:
    """Return parsed JSON as `json.loads` does, but cut off what is nested too deep instead of refusing all of it.

    pydantic's parser takes a third of the time, and objects share the texts that they have in common. It is stricter:
    what it refuses, such as half of a surrogate pair, is left to Python's.
    """
    try:
        return from_json(data, cache_strings="all")
    except ValueError:
        return _loads_leniently(data)


def _loads_leniently(data: bytes) -> Any:
    try:
        return json.loads(data)
    except RecursionError:
        return json.loads(_cut(data))


def is_deeper(value: object, levels: int) -> bool:
    """Whether dicts and lists are nested in each other more than this."""
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


def _cut(data: bytes) -> bytes:
    kept, begin, depth = [], 0, 0
    for token in _TOKEN.finditer(data):
        match data[token.start()]:
            case 0x5B | 0x7B:
                depth += 1
                if depth == DEEPEST + 1:
                    kept += [data[begin : token.start()], b"null"]
            case 0x5D | 0x7D:
                if depth == DEEPEST + 1:
                    begin = token.end()
                depth -= 1
    return b"".join([*kept, data[begin:]])
