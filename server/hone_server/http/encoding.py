"""Encode the JSON of answers in pieces, so that a long one does not block other requests.

`json.dumps` holds Python's global lock until it ends, also in a thread: 0.3 s for an answer of 5 MB, during which the
event loop stops. Here the lists of an answer are encoded a few entries at a time, with pauses in which other threads
run. In: the answer's value. Out: the text that `json.dumps` would return. formatting.py makes the values.
"""

import json
import time
from collections.abc import Iterator
from typing import Any

# Entries of a list that are encoded together. With 20 likeliest tokens each they have 20 to 50 KB, which takes 1 ms.
MAX_ENTRIES = 32
# An answer's long lists are not nested deeper: choices, choice, logprobs, and its lists.
MAX_DEPTH = 4
PAUSE_SECONDS = 0.0005

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def encode_json(value: Any) -> str:
    """Return the value's JSON, without a pause."""
    return _encode(value)


def encode_with_pauses(value: Any) -> str:
    """Return the value's JSON, with pauses. Call it in a worker thread."""
    parts: list[str] = []
    for part in _encode_parts(value, MAX_DEPTH):
        parts.append(part)
        if len(part) > MAX_ENTRIES * 8:
            time.sleep(PAUSE_SECONDS)
    return "".join(parts)


def _encode_parts(value: Any, depth: int) -> Iterator[str]:
    if isinstance(value, dict) and value and depth:
        for place, (key, entry) in enumerate(value.items()):
            yield f"{',' if place else '{'}{_encode(key)}:"
            yield from _encode_parts(entry, depth - 1)
        yield "}"
    elif isinstance(value, list) and len(value) > MAX_ENTRIES:
        for start in range(0, len(value), MAX_ENTRIES):
            yield ("," if start else "[") + _encode(value[start : start + MAX_ENTRIES])[1:-1]
        yield "]"
    elif isinstance(value, list) and value and depth:
        for place, entry in enumerate(value):
            yield "," if place else "["
            yield from _encode_parts(entry, depth - 1)
        yield "]"
    else:
        yield _encode(value)
