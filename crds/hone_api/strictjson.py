"""Parse JSON that was written by others: ambiguous and invalid documents are refused.

Python's parser accepts the last of two keys with the same name, NaN, and any depth that its stack holds. Other parsers
decide differently, so two readers of one file could read two different contents.
"""

import json
import math
from typing import Any

import pydantic_core


def parse(content: bytes) -> Any:
    """Parse JSON. Raises ValueError for a key that occurs twice, numbers that are not finite, and deep nesting."""
    pydantic_core.from_json(content, allow_inf_nan=False)  # has a limit of depth
    return json.loads(content, object_pairs_hook=_refuse_duplicates, parse_float=_parse_finite)


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} occurs twice")
    return found


def _parse_finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:40]} is too large")
    return value
