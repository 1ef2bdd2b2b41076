"""Where in a JSON schema are other schemas, and keywords: finding, replacing and removing them by their places.

`schemas` prepares every schema that it finds by these; `grammar_trial` finds out by `removable` and `without` which
keyword the compiler refuses. Pure.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator
from enum import Enum
from typing import Any
from urllib.parse import unquote

Path = tuple[str | int, ...]

MAPS = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
LISTS = frozenset({"anyOf", "oneOf", "allOf", "prefixItems"})
SINGLE = frozenset(
    "items additionalItems additionalProperties not if then else contains propertyNames unevaluatedItems "
    "unevaluatedProperties".split()
)
NUMBERS = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"})
COUNTS = frozenset("minLength maxLength minItems maxItems minProperties maxProperties minContains maxContains".split())
VALUES = frozenset({"const", "enum"})
OTHERS = frozenset(
    "type format pattern required uniqueItems dependentRequired dependencies $ref $dynamicRef $recursiveRef".split()
)
REFERENCES = frozenset("$ref $dynamicRef $recursiveRef".split())
KEYWORDS = MAPS | LISTS | SINGLE | NUMBERS | COUNTS | VALUES | OTHERS
DEFINITIONS = frozenset({"$defs", "definitions"})


class Place(Enum):
    """What a reference may point to."""

    SCHEMA = "a schema that is reached by keywords alone"
    NO_SCHEMA = "a part of a keyword that is not a schema, such as the map of all properties"
    ELSEWHERE = "something below a key that is no keyword, such as `components`"


def write_path(path: Path) -> str:
    return "/".join(str(part) for part in path)


def find(schema: Any, path: Path) -> Any:
    """Return what is at the place; None: there is nothing."""
    for key in path:
        if isinstance(schema, dict):
            schema = schema.get(key)
        elif isinstance(schema, list) and str(key).isdecimal() and int(key) < len(schema):
            schema = schema[int(key)]
        else:
            return None
    return schema


def replace_at(schema: Any, path: Path, part: Any) -> Any:
    """Return the schema with another part at a place, which it has."""
    if not path:
        return part
    key, *rest = path
    if isinstance(schema, list):
        key = int(key)
        return [*schema[:key], replace_at(schema[key], tuple(rest), part), *schema[key + 1 :]]
    return {**schema, key: replace_at(schema[key], tuple(rest), part)}


def read_reference(reference: Any, root: Any) -> Path | None:
    """Return the place that a reference names by a path in its own document; None: it names one otherwise."""
    document, _, fragment = str(reference).partition("#")
    own = root.get("$id", "") if isinstance(root, dict) else ""
    if not fragment.startswith("/") or document not in ("", str(own).partition("#")[0]):
        return None
    parts = unquote(fragment).removeprefix("/").split("/")
    return tuple(part.replace("~1", "/").replace("~0", "~") for part in parts)


def kind_of_place(schema: Any, path: Path) -> Place:
    """Return what is at the place of a reference."""
    rest = list(path)
    while rest and isinstance(schema, dict):
        key = rest.pop(0)
        is_list = key in LISTS or (key == "items" and isinstance(schema.get(key), list))
        if key in MAPS or is_list:
            if not rest:
                return Place.NO_SCHEMA
            schema = find(schema, (key, rest.pop(0)))
        elif key in SINGLE:
            schema = schema.get(key)
        else:
            return Place.NO_SCHEMA if key in KEYWORDS else Place.ELSEWHERE
    return Place.SCHEMA


def removable(schema: Any) -> list[Path]:
    """Return the places of all keywords that restrict, in the order to try without them: the deepest first."""
    return sorted(places_of(schema, ()), key=lambda path: (-len(path), _LAST.get(str(path[-1]), 0)))


_LAST = {"required": 1, "additionalProperties": 2, "properties": 3, "items": 3, "type": 4}


def places_of(schema: Any, path: Path) -> Iterator[Path]:
    if not isinstance(schema, dict):
        return
    for key, value in schema.items():
        if key in KEYWORDS - DEFINITIONS and (path or key != "type"):
            yield (*path, key)
        if key in MAPS and isinstance(value, dict):
            for name, part in value.items():
                if not isinstance(part, dict | bool):
                    yield (*path, key, name)
                yield from places_of(part, (*path, key, name))
        elif key in LISTS | {"items"} and isinstance(value, list):
            for place, part in enumerate(value):
                yield from places_of(part, (*path, key, place))
        elif key in SINGLE:
            yield from places_of(value, (*path, key))


def without(schema: Any, places: Collection[Path]) -> Any:
    """Return the schema without the keywords at these places."""
    deeper = defaultdict[str | int, list[Path]](list)
    for key, *rest in places:
        deeper[key].append(tuple(rest))
    if isinstance(schema, list):
        return [without(part, deeper[place]) if place in deeper else part for place, part in enumerate(schema)]
    if not isinstance(schema, dict):
        return schema
    return {
        key: without(value, deeper[key]) if key in deeper else value
        for key, value in schema.items()
        if () not in deeper.get(key, ())
    }
