"""JSON of answers, encoded in pieces so that nobody waits for a long one.

`json.dumps` holds Python's global lock until it ends, also in a thread: 0.3 s for an answer of 5 MB, in which the event
loop stands still. Here the lists of an answer are encoded some entries at a time, with a pause between them in which
other threads run. In: the answer's value; out: the text that `json.dumps` would return. formatting.py makes the values.
"""

import json
import time
from collections.abc import Iterator
from typing import Any

ENTRIES = 32
"""Of a list, encoded together. With 20 likeliest tokens for each they are 20 to 50 KB, which takes 1 ms."""
DEEPEST = 4
"""An answer's long lists are not deeper: choices, choice, logprobs, and its lists."""
PAUSE_SECONDS = 0.0005

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def encode_json(value: Any) -> str:
    """Return the value's JSON, without a pause."""
    return _encode(value)


def encode_with_pauses(value: Any) -> str:
    """Return the value's JSON. For a worker thread."""
    parts: list[str] = []
    for part in _encode_parts(value, DEEPEST):
        parts.append(part)
        if len(part) > ENTRIES * 8:
            time.sleep(PAUSE_SECONDS)
    return "".join(parts)


def _encode_parts(value: Any, depth: int) -> Iterator[str]:
    if isinstance(value, dict) and value and depth:
        for place, (key, entry) in enumerate(value.items()):
            yield f"{',' if place else '{'}{_encode(key)}:"
            yield from _encode_parts(entry, depth - 1)
        yield "}"
    elif isinstance(value, list) and len(value) > ENTRIES:
        for start in range(0, len(value), ENTRIES):
            yield ("," if start else "[") + _encode(value[start : start + ENTRIES])[1:-1]
        yield "]"
    elif isinstance(value, list) and value and depth:
        for place, entry in enumerate(value):
            yield "," if place else "["
            yield from _encode_parts(entry, depth - 1)
        yield "]"
    else:
        yield _encode(value)
