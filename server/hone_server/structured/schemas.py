"""Prepare JSON schemas for the grammar compiler, which would silently misread some of them.

`grammars` calls `prepare_schema`, which leaves out keywords that ask for nothing, translates what former drafts wrote
differently, and refuses numbers that a double can't hold. `schema_places` knows where in a schema are others. Pure; no
torch, and nothing of the request.
"""

import math
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

from hone_server.structured.schema_places import (
    COUNT_KEYWORDS,
    NUMBER_KEYWORDS,
    REFERENCE_KEYWORDS,
    SCHEMA_KEYWORDS,
    SCHEMA_LISTS,
    SCHEMA_MAPS,
    SINGLE_SCHEMAS,
    VALUE_KEYWORDS,
    Path,
    PlaceKind,
    classify_place,
    format_path,
    get_at,
    iterate_keywords,
    remove_at,
    replace_at,
    resolve_reference,
)

# `const: null` is a value.
NEVER_NULL = SCHEMA_KEYWORDS - {"const"}
ANNOTATIONS = frozenset(
    "title description default examples deprecated readOnly writeOnly $comment contentMediaType contentEncoding".split()
)
COMBINING_KEYWORDS = frozenset(
    "allOf anyOf oneOf if then else $ref $dynamicRef $recursiveRef dependentSchemas not".split()
)
# pydantic's and OpenAPI's names for texts that may be anything: hints for a form, or what only a computer can check.
NEUTRAL_FORMATS = frozenset({"password", "binary", "path", "file-path", "directory-path"})
# pydantic's pattern of a Decimal, and one with the same meaning that the compiler can read: it has no look-ahead.
EQUAL_PATTERNS = {r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$": r"^[+-]?(\d+\.?\d*|\.\d+)$"}
MAX_INTEGER = 2**63
# The compiler builds an automaton of as many states: 30,000 take 0.3 s, and the time grows with the square.
MAX_MULTIPLE_DIGITS = 30_000
# Up to here, one multiplication or division makes the double of a decimal number.
MAX_EXACT_EXPONENT = 22
INEXACT_MESSAGE = (
    "can't be enforced exactly, because the compiler holds numbers as doubles; use an integer of at most 2^53 or 15 "
    "digits, or a string"
)


class SchemaError(ValueError):
    """A keyword at a place of the schema can't be enforced as it is."""

    def __init__(self, path: Path, message: str) -> None:
        super().__init__(f"{format_path(path)}: {message}" if path else message)


def prepare_schema(schema: Any, *, is_strict: bool) -> Any:
    """Return the schema for the compiler. Raises SchemaError, or leaves out the keyword if it is not strict."""
    prepared = _prepare_subschema(schema, is_strict=is_strict, path=())
    pending = [(*path, key) for path, key in _iterate_references(prepared, ())]
    visited, removed = set[Path](), list[Path]()
    while pending:
        path = pending.pop()
        target = resolve_reference(get_at(prepared, path), prepared)
        if target is None:
            continue
        kind = classify_place(prepared, target)
        if kind is PlaceKind.NOT_A_SCHEMA:
            if is_strict:
                raise SchemaError(path, f"points to {format_path(target)}, which is not a schema")
            removed.append(path)
        if (
            kind is PlaceKind.OUTSIDE_KEYWORDS
            and target not in visited
            and isinstance(part := get_at(prepared, target), dict)
        ):
            visited.add(target)
            part = _prepare_subschema(part, is_strict=is_strict, path=target)
            prepared = replace_at(prepared, target, part)
            pending += [(*path, key) for path, key in _iterate_references(part, target)]
    return remove_at(prepared, removed) if removed else prepared


def _iterate_references(schema: Any, path: Path) -> Iterator[tuple[Path, str]]:
    """Return the schemas in this one that refer to another, each with the keyword."""
    for place in iterate_keywords(schema, path):
        if place[-1] in REFERENCE_KEYWORDS and isinstance(get_at(schema, place[len(path) :]), str):
            yield place[:-1], str(place[-1])


def _prepare_subschema(schema: Any, *, is_strict: bool, path: Path) -> Any:
    """Return a schema at this place for the compiler, with all schemas in it. Raises SchemaError."""
    if not isinstance(schema, dict):
        return schema
    prepared: dict[str, Any] = {}
    for key, value in schema.items():
        if key in ANNOTATIONS:
            continue  # may hold values that the compiler can't read, such as 1e400
        try:
            _check_keyword(schema, key, value, (*path, key))
        except SchemaError:
            if is_strict:
                raise
            continue
        prepared[key] = _prepare_value(key, value, is_strict=is_strict, path=(*path, key))
    prepared = _remove_neutral(_convert_to_current_draft(prepared))
    if names := _list_required_properties(schema):
        prepared["required"] = [*prepared.get("required", ()), *names]
    return prepared if is_strict else _remove_impossible_names(prepared)


def _prepare_value(key: str, value: Any, *, is_strict: bool, path: Path) -> Any:
    def prepare_part(part: Any, name: str | int) -> Any:
        return _prepare_subschema(part, is_strict=is_strict, path=(*path, name))

    if key == "pattern" and isinstance(value, str):
        return EQUAL_PATTERNS.get(value, value)
    if key in COUNT_KEYWORDS and isinstance(value, float) and value.is_integer():
        return int(value)
    if key in SCHEMA_MAPS and isinstance(value, dict):
        return {name: prepare_part(part, name) for name, part in value.items()}
    if key in SCHEMA_LISTS | {"items"} and isinstance(value, list):
        return [prepare_part(part, place) for place, part in enumerate(value)]
    return _prepare_subschema(value, is_strict=is_strict, path=path) if key in SINGLE_SCHEMAS else value


def _check_keyword(schema: dict[str, Any], key: str, value: Any, path: Path) -> None:
    """Raise SchemaError for a value that the compiler would misread instead of refusing it."""
    if value is None and key in NEVER_NULL:
        raise SchemaError(path, "is null; leave it out")
    if key in VALUE_KEYWORDS and (number := _find_inexact(value, schema)) is not None:
        raise SchemaError(path, f"the number {number} {INEXACT_MESSAGE}")
    if key in NUMBER_KEYWORDS and not isinstance(value, bool) and (number := _find_inexact(value, schema)) is not None:
        raise SchemaError(path, f"the number {number} {INEXACT_MESSAGE}")
    if key == "multipleOf" and isinstance(value, int | float):
        if not 0 < value < math.inf:
            raise SchemaError(path, f"is {value}; it must be above 0")
        if _split_decimal(value, trimmed=True)[0] > MAX_MULTIPLE_DIGITS:
            raise SchemaError(path, f"is {value}; without its decimal point it may be {MAX_MULTIPLE_DIGITS} at most")
    if key in ("exclusiveMinimum", "exclusiveMaximum") and value is True:
        bound = "minimum" if key == "exclusiveMinimum" else "maximum"
        if not isinstance(schema.get(bound), int | float) or isinstance(schema.get(bound), bool):
            raise SchemaError(path, f"is true, and there is no {bound}; set {key} to the number")
    if key == "required" and value is True and (len(path) < 3 or path[-3] != "properties"):
        raise SchemaError(
            path, "is true, which is allowed in a property only; list the names of the required properties"
        )


def _find_inexact(value: Any, schema: dict[str, Any]) -> int | float | None:
    """Return a number in a value that the compiler would read or write as a different number; None: there is none."""
    if isinstance(value, list | dict):
        parts = value.values() if isinstance(value, dict) else value
        return next((found for part in parts if (found := _find_inexact(part, schema)) is not None), None)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(value, float):
        if not math.isfinite(value):
            return value
        kind = schema.get("type")
        if abs(value) >= MAX_INTEGER and isinstance(kind, str | list) and "integer" in kind:
            return value
        digits, exponent = _split_decimal(value)
        return None if digits <= 2**53 and abs(exponent) <= MAX_EXACT_EXPONENT else value
    return None if abs(value) <= 2**53 or (abs(value) < MAX_INTEGER and int(float(value)) == value) else value


def _split_decimal(number: int | float, *, trimmed: bool = False) -> tuple[int, int]:
    """Return the digits of a number in JSON as an integer, and the power of ten to multiply them by.

    trimmed: without the zeros at the end.
    """
    written = Decimal(repr(number))
    _, digits, exponent = (written.normalize() if trimmed else written).as_tuple()
    return int("".join(map(str, digits))), exponent if isinstance(exponent, int) else 0


def _convert_to_current_draft(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema with the booleans of drafts 3 and 4 translated to the current draft."""
    out = dict(schema)
    for key, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if out.get(key) is True:
            out[key] = out.pop(bound)
        elif out.get(key) is False:
            del out[key]
    if out.get("required") is False or out.get("required") is True:
        del out["required"]  # true: the object around it lists the name
    # The compiler takes it as a sign of an earlier draft, and then ignores prefixItems; without a list of items it has
    # no meaning in any draft.
    if "additionalItems" in out and not isinstance(out.get("items"), list):
        del out["additionalItems"]
    return out


def _list_required_properties(schema: dict[str, Any]) -> list[str]:
    """Return the names of the properties that have `required: true` in their own schema, as in draft 3."""
    properties = schema.get("properties")
    if not isinstance(properties, dict):
        return []
    return [name for name, part in properties.items() if isinstance(part, dict) and part.get("required") is True]


def _allows_anything(schema: Any) -> bool:
    return schema is True or (isinstance(schema, dict) and ANNOTATIONS.issuperset(schema))


def _allows_any_name(schema: Any) -> bool:
    """Return whether the schema allows every property name."""
    return schema is True or (
        isinstance(schema, dict) and ANNOTATIONS.issuperset(set(schema) - {"type"}) and _allows_strings(schema)
    )


def _allows_strings(schema: dict[str, Any]) -> bool:
    kind = schema.get("type", "string")
    return kind == "string" or (isinstance(kind, list) and "string" in kind)


_NEUTRAL_KEYWORDS: dict[str, Callable[[Any, dict[str, Any]], bool]] = {
    "format": lambda value, _: isinstance(value, str) and value in NEUTRAL_FORMATS,
    "uniqueItems": lambda value, _: value is False,
    "unevaluatedItems": lambda value, _: _allows_anything(value),
    "unevaluatedProperties": lambda value, _: _allows_anything(value),
    "dependentRequired": lambda value, _: isinstance(value, dict) and not any(value.values()),
    "dependentSchemas": lambda value, _: isinstance(value, dict) and all(map(_allows_anything, value.values())),
    "dependencies": lambda value, _: (
        isinstance(value, dict) and all(part == [] or _allows_anything(part) for part in value.values())
    ),
    "propertyNames": lambda value, _: _allows_any_name(value),
    "contains": lambda _, schema: schema.get("minContains") == 0 and "maxContains" not in schema,
    "minContains": lambda _, schema: "contains" not in schema,
    "maxContains": lambda _, schema: "contains" not in schema,
    "not": lambda value, _: value is False,
    "if": lambda _, schema: all(_allows_anything(schema.get(key, True)) for key in ("then", "else")),
    "then": lambda _, schema: "if" not in schema,
    "else": lambda _, schema: "if" not in schema,
    "$recursiveAnchor": lambda *_: True,  # marks a place, and restricts nothing
    "$dynamicAnchor": lambda *_: True,
}


def _remove_neutral(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema without the keywords that restrict nothing, and that the compiler would refuse."""
    out = dict(schema)
    while neutral := [key for key in out if key in _NEUTRAL_KEYWORDS and _NEUTRAL_KEYWORDS[key](out[key], out)]:
        for key in neutral:
            del out[key]
    # If no other keyword evaluates properties, it means the same as the plain keyword.
    for key, plain in (("unevaluatedProperties", "additionalProperties"), ("unevaluatedItems", "items")):
        if key in out and COMBINING_KEYWORDS.isdisjoint(out) and "contains" not in out:
            value = out.pop(key)
            out.setdefault(plain, value)
    return out


def _remove_impossible_names(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema with no name in `required` that its other keywords forbid."""
    names, properties = schema.get("required"), schema.get("properties", {})
    if not isinstance(names, list) or not isinstance(properties, dict) or schema.get("patternProperties"):
        return schema
    if schema.get("additionalProperties") is not False:
        return schema
    possible = [name for name in names if isinstance(name, str) and properties.get(name) not in (None, False)]
    return {**schema, "required": possible}
