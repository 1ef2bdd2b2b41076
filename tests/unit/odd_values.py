"""Values of any type, to be put at any place of a manifest's spec."""

import copy
from collections.abc import Iterator
from typing import Any

Path = tuple[str | int, ...]
ODD_VALUES: list[Any] = [None, 5, -1.5, True, "text", [], [None], {}, {"": ""}, [{"a": []}]]


def list_paths(value: Any, path: Path = ()) -> Iterator[Path]:
    """Yield the paths of all values below a value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in items:
        yield (*path, key)
        yield from list_paths(below, (*path, key))


def replace_value(manifest: dict[str, Any], path: Path, value: Any) -> dict[str, Any]:
    """Return a copy of a manifest with another value at this path of its spec."""
    changed = copy.deepcopy(manifest)
    place = changed["spec"]
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return changed
