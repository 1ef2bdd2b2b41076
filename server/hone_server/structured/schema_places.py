"""Where in a JSON schema are other schemas, and keywords: finding, replacing and removing them by their places.

`schemas` prepares every schema that it finds by these; `grammar_trial` finds out by `list_removable` and `remove_at`
which keyword the compiler refuses. Pure.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator
from enum import Enum
from typing import Any
from urllib.parse import unquote

Path = tuple[str | int, ...]

SCHEMA_MAPS = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
SCHEMA_LISTS = frozenset({"anyOf", "oneOf", "allOf", "prefixItems"})
SINGLE_SCHEMAS = frozenset(
    "items additionalItems additionalProperties not if then else contains propertyNames unevaluatedItems "
    "unevaluatedProperties".split()
)
NUMBER_KEYWORDS = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"})
COUNT_KEYWORDS = frozenset(
    "minLength maxLength minItems maxItems minProperties maxProperties minContains maxContains".split()
)
VALUE_KEYWORDS = frozenset({"const", "enum"})
OTHER_KEYWORDS = frozenset(
    "type format pattern required uniqueItems dependentRequired dependencies $ref $dynamicRef $recursiveRef".split()
)
REFERENCE_KEYWORDS = frozenset("$ref $dynamicRef $recursiveRef".split())
SCHEMA_KEYWORDS = (
    SCHEMA_MAPS | SCHEMA_LISTS | SINGLE_SCHEMAS | NUMBER_KEYWORDS | COUNT_KEYWORDS | VALUE_KEYWORDS | OTHER_KEYWORDS
)
DEFINITION_KEYWORDS = frozenset({"$defs", "definitions"})


class PlaceKind(Enum):
    """What a reference may point to."""

    SCHEMA = "a schema that is reached by keywords alone"
    NOT_A_SCHEMA = "a part of a keyword that is not a schema, such as the map of all properties"
    OUTSIDE_KEYWORDS = "something below a key that is no keyword, such as `components`"


def format_path(path: Path) -> str:
    return "/".join(str(part) for part in path)


def get_at(schema: Any, path: Path) -> Any:
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


def resolve_reference(reference: Any, root: Any) -> Path | None:
    """Return the place that a reference names by a path in its own document; None: it names one otherwise."""
    document, _, fragment = str(reference).partition("#")
    own = root.get("$id", "") if isinstance(root, dict) else ""
    if not fragment.startswith("/") or document not in ("", str(own).partition("#")[0]):
        return None
    parts = unquote(fragment).removeprefix("/").split("/")
    return tuple(part.replace("~1", "/").replace("~0", "~") for part in parts)


def classify_place(schema: Any, path: Path) -> PlaceKind:
    """Return what is at the place of a reference."""
    rest = list(path)
    while rest and isinstance(schema, dict):
        key = rest.pop(0)
        is_list = key in SCHEMA_LISTS or (key == "items" and isinstance(schema.get(key), list))
        if key in SCHEMA_MAPS or is_list:
            if not rest:
                return PlaceKind.NOT_A_SCHEMA
            schema = get_at(schema, (key, rest.pop(0)))
        elif key in SINGLE_SCHEMAS:
            schema = schema.get(key)
        else:
            return PlaceKind.NOT_A_SCHEMA if key in SCHEMA_KEYWORDS else PlaceKind.OUTSIDE_KEYWORDS
    return PlaceKind.SCHEMA


def list_removable(schema: Any) -> list[Path]:
    """Return the places of all keywords that restrict, in the order to try without them: the deepest first."""
    return sorted(iterate_keywords(schema, ()), key=lambda path: (-len(path), _REMOVAL_ORDER.get(str(path[-1]), 0)))


_REMOVAL_ORDER = {"required": 1, "additionalProperties": 2, "properties": 3, "items": 3, "type": 4}


def iterate_keywords(schema: Any, path: Path) -> Iterator[Path]:
    if not isinstance(schema, dict):
        return
    for key, value in schema.items():
        if key in SCHEMA_KEYWORDS - DEFINITION_KEYWORDS and (path or key != "type"):
            yield (*path, key)
        if key in SCHEMA_MAPS and isinstance(value, dict):
            for name, part in value.items():
                if not isinstance(part, dict | bool):
                    yield (*path, key, name)
                yield from iterate_keywords(part, (*path, key, name))
        elif key in SCHEMA_LISTS | {"items"} and isinstance(value, list):
            for place, part in enumerate(value):
                yield from iterate_keywords(part, (*path, key, place))
        elif key in SINGLE_SCHEMAS:
            yield from iterate_keywords(value, (*path, key))


def remove_at(schema: Any, places: Collection[Path]) -> Any:
    """Return the schema without the keywords at these places."""
    deeper = defaultdict[str | int, list[Path]](list)
    for key, *rest in places:
        deeper[key].append(tuple(rest))
    if isinstance(schema, list):
        return [remove_at(part, deeper[place]) if place in deeper else part for place, part in enumerate(schema)]
    if not isinstance(schema, dict):
        return schema
    return {
        key: remove_at(value, deeper[key]) if key in deeper else value
        for key, value in schema.items()
        if () not in deeper.get(key, ())
    }
