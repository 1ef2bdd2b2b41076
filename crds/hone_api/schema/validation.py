"""Validate an object with the messages of the API server, without one.

It walks the same schema as in the CRD: unknown fields, then Kubernetes' structural checks on the object with its
defaults, then the CEL rules. Rules on changes (`oldSelf`) need the previous object, so only the API server checks
those.
"""

import difflib
import json
import re
from collections.abc import Iterator
from decimal import Decimal
from functools import cache
from typing import Any, NamedTuple

from hone_api.common import API_VERSION
from hone_api.io.terminal import hide_url_credentials
from hone_api.schema.cel import is_rule_true
from hone_api.schema.crd import KINDS, Schema, fill_defaults, make_schema

METADATA = frozenset(
    "name generateName namespace labels annotations finalizers ownerReferences uid resourceVersion generation "
    "creationTimestamp deletionTimestamp deletionGracePeriodSeconds managedFields selfLink".split()
)


_ANYTHING: Schema = {"x-kubernetes-preserve-unknown-fields": True}
# Of more values than these, the nearest one is named as well.
_MANY = 12


class _Problem(NamedTuple):
    sentence: str
    hides_rules: bool = False


def validate_object(document: dict[str, Any]) -> list[str]:
    """Return why `kubectl apply` would refuse the object, each reason with field, value and remedy.

    Needs the extra [cli], whose cel-python evaluates the rules.
    """
    kind, version = document.get("kind"), document.get("apiVersion")
    if not isinstance(kind, str) or kind not in KINDS or version != API_VERSION:
        return [
            f'no matches for kind "{kind or ""}" in version "{version or ""}": '
            f"Hone has {' and '.join(KINDS)} in {API_VERSION}"
        ]
    of = make_schema(kind)
    complete = _generate_name(fill_defaults(document, of))
    problems = [*_find_unknown_fields("", document, of, of), *_check_name(complete), *_check_metadata(complete)]
    problems += [*_check_value("", complete, of), *_find_duplicates("", complete, of)]
    if not any(problem.hides_rules for problem in problems):
        problems += _check_rules("", complete, of)
    return [problem.sentence for problem in problems]


def _find_unknown_fields(path: str, value: Any, of: Schema, root: Schema) -> Iterator[_Problem]:
    anything = of.get("x-kubernetes-preserve-unknown-fields", False)
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _find_unknown_fields(f"{path}[{index}]", item, of if anything else of.get("items", {}), root)
    elif isinstance(value, dict):
        known = METADATA if path == "metadata" else of.get("properties", {}).keys()
        others = _ANYTHING if anything else of.get("additionalProperties")
        for name, item in value.items():
            child = f"{path}.{name}".lstrip(".")
            if name in known or others:
                yield from _find_unknown_fields(
                    child, item, of.get("properties", {}).get(name, others or _ANYTHING), root
                )
            else:
                yield _Problem(f'unknown field "{child}"{_suggest_field(path, str(name), root)}')


def _suggest_field(path: str, name: str, root: Schema) -> str:
    """Return where a field with almost this name is, the nearest place first."""
    places: dict[str, list[str]] = {}
    for place in _list_fields("spec", root["properties"]["spec"]):
        places.setdefault(place.rpartition(".")[2], []).append(place)
    parent = re.sub(r"\[\d+\]", "[]", path)
    siblings = [field for field, found in places.items() if f"{parent}.{field}" in found]
    for candidates in (siblings, list(places)):
        for match in difflib.get_close_matches(name, candidates, n=1, cutoff=0.82):
            near = f"{parent}.{match}" in places[match]
            return f"; did you mean {f'{path}.{match}' if near else places[match][0]}?"
    return ""


def _list_fields(path: str, of: Schema) -> Iterator[str]:
    for name, field in of.get("properties", {}).items():
        yield f"{path}.{name}"
        yield from _list_fields(f"{path}.{name}", field)
    if "items" in of:
        yield from _list_fields(f"{path}[]", of["items"])


def _generate_name(document: dict[str, Any]) -> dict[str, Any]:
    """Return the object with the name that the API server makes from generateName."""
    metadata = document.get("metadata")
    if isinstance(metadata, dict) and metadata.get("generateName") and not metadata.get("name"):
        return document | {"metadata": metadata | {"name": f"{metadata['generateName']}xxxxx"}}
    return document


def _check_name(document: dict[str, Any]) -> Iterator[_Problem]:
    metadata = document.get("metadata")
    if not isinstance(metadata, dict) or not metadata.get("name"):
        yield _Problem("metadata.name: Required value: name or generateName is required", hides_rules=True)


def _check_metadata(document: dict[str, Any]) -> Iterator[_Problem]:
    """Find parts that the API server can't decode into its own metadata, for which a CRD has no schema."""
    metadata = document.get("metadata")
    if not isinstance(metadata, dict):
        return
    for field in ("generateName", "namespace"):  # the schema has name
        if metadata.get(field) is not None:
            yield from _check_is_string(f"metadata.{field}", metadata[field])
    for field in ("labels", "annotations"):
        entries = metadata.get(field)
        if entries is not None and not isinstance(entries, dict):
            yield _Problem(
                f"metadata.{field}: Invalid value: {_format_value(entries)}: must be an object", hides_rules=True
            )
        elif entries:
            for key, value in entries.items():
                if value is not None:
                    yield from _check_is_string(f"metadata.{field}.{key}", value)


def _check_is_string(path: str, value: Any) -> Iterator[_Problem]:
    if not isinstance(value, str):
        yield _Problem(
            f"{path}: Invalid value: {_format_value(value)}: must be a string{_suggest_quotes(value)}", hides_rules=True
        )


def _suggest_quotes(value: Any) -> str:
    """Return what to do about a value that YAML reads as another type than text."""
    return "; write it in quotes" if isinstance(value, bool | int | float) else ""


def _check_value(path: str, value: Any, of: Schema) -> Iterator[_Problem]:
    yield from _check_type(path, value, of)
    if isinstance(value, str):
        yield from _check_text(path, value, of)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield from _check_number(path, value, of)
    elif isinstance(value, list):
        yield from _check_list(path, value, of)
    if value not in of.get("enum", [value]):
        supported = ", ".join(_quote(option) for option in of["enum"])
        near = difflib.get_close_matches(str(value), map(str, of["enum"]), n=1) if len(of["enum"]) > _MANY else []
        hint = f"; did you mean {near[0]}?" if near else ""
        sentence = f"{path}: Unsupported value: {_format_value(value)}: supported values: {supported}{hint}"
        yield _Problem(sentence, hides_rules=True)
    if isinstance(value, dict):
        yield from _check_object(path, value, of)


def _check_type(path: str, value: Any, of: Schema) -> Iterator[_Problem]:
    expected = ["integer", "string"] if of.get("x-kubernetes-int-or-string") else [of["type"]] if "type" in of else []
    found = _name_type(value)
    if expected and found not in expected and not (found == "integer" and "number" in expected):
        message = f"{path} in body must be of type {','.join(expected)}: {_quote(found)}"
        message += _suggest_quotes(value) if expected == ["string"] else ""
        yield _Problem(f"{path}: Invalid value: {_quote(found)}: {message}", hides_rules=True)


def _name_type(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "integer" if abs(value) < 2**63 and value == int(value) else "number"
    names = {str: "string", list: "array", dict: "object", type(None): "null"}
    return names[type(value)]


def _check_text(path: str, value: str, of: Schema) -> Iterator[_Problem]:
    if len(value) > of.get("maxLength", len(value)):
        yield _Problem(f"{path}: Too long: may not be more than {of['maxLength']} bytes", hides_rules=True)
    elif len(value) < of.get("minLength", 0):
        yield _make_invalid(path, value, f"should be at least {of['minLength']} chars long")
    elif "pattern" in of and not _compile_pattern(of["pattern"]).fullmatch(value):
        yield _make_invalid(path, value, f"should match '{of['pattern']}'")


@cache
def _compile_pattern(anchored: str) -> re.Pattern[str]:
    """Return a pattern of a schema, which begins with ^ and ends with $, for `fullmatch`."""
    return re.compile(f"(?:{anchored.removeprefix('^').removesuffix('$')})", re.ASCII)


def _check_number(path: str, value: float, of: Schema) -> Iterator[_Problem]:
    least, most = of.get("minimum"), of.get("maximum")
    as_integer = _name_type(value) == "integer"
    if most is not None and (value > most or (value == most and of.get("exclusiveMaximum"))):
        than = "less than" if of.get("exclusiveMaximum") else "less than or equal to"
        yield _make_invalid(path, value, f"should be {than} {_format_number(most, as_integer)}")
    if least is not None and (value < least or (value == least and of.get("exclusiveMinimum"))):
        than = "greater than" if of.get("exclusiveMinimum") else "greater than or equal to"
        yield _make_invalid(path, value, f"should be {than} {_format_number(least, as_integer)}")


def _check_list(path: str, value: list[Any], of: Schema) -> Iterator[_Problem]:
    for index, item in enumerate(value):
        yield from _check_value(f"{path}[{index}]", item, of.get("items", {}))
    if len(value) < of.get("minItems", 0):
        yield _make_invalid(path, len(value), f"should have at least {of['minItems']} items")
    yield from _check_count(path, len(value), of.get("maxItems"))


def _check_object(path: str, value: dict[str, Any], of: Schema) -> Iterator[_Problem]:
    yield from _check_count(path, len(value), of.get("maxProperties"))
    for name, item in value.items():
        field = of.get("properties", {}).get(name, of.get("additionalProperties"))
        if field:
            yield from _check_value(f"{path}.{name}".lstrip("."), item, field)
    for name in of.get("required", []):
        if name not in value:
            yield _Problem(f"{path}.{name}".lstrip(".") + ": Required value", hides_rules=True)


def _check_count(path: str, found: int, most: int | None) -> Iterator[_Problem]:
    if most is not None and found > most:
        yield _Problem(f"{path}: Too many: {found}: must have at most {most} items", hides_rules=True)


def _find_duplicates(path: str, value: Any, of: Schema) -> Iterator[_Problem]:
    if isinstance(value, dict):
        values = of.get("additionalProperties", {})
        for name, item in value.items():
            yield from _find_duplicates(f"{path}.{name}".lstrip("."), item, of.get("properties", {}).get(name, values))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _find_duplicates(f"{path}[{index}]", item, of.get("items", {}))
        if of.get("x-kubernetes-list-type", "atomic") == "atomic":
            return
        keys = value
        if names := of.get("x-kubernetes-list-map-keys"):
            for index, item in enumerate(value):
                if not isinstance(item, dict | None):
                    why = "must be an object for an array of list-type map"
                    yield _Problem(f"{path}[{index}]: Invalid value: {_format_value(item)}: {why}")
                    return
            keys = [{name: item[name] for name in names if name in item} for item in [item or {} for item in value]]
        for index, key in enumerate(keys):
            if keys[:index].count(key) == 1:
                yield _Problem(f"{path}[{index}]: Duplicate value: {_format_value(key)}")


def _check_rules(path: str, value: Any, of: Schema) -> Iterator[_Problem]:
    for rule in of.get("x-kubernetes-validations", []):
        if "oldSelf" not in rule["rule"] and not is_rule_true(rule["rule"], value):
            shown = "" if of.get("type") in ("object", "array") else f" {_format_value(value)}:"
            field = f"{path}{rule.get('fieldPath', '')}".lstrip(".")
            yield _Problem(f"{field}: Invalid value:{shown} {rule['message']}")
    if isinstance(value, dict):
        properties = of.get("properties", {})
        for name, item in value.items():
            if name in properties:
                yield from _check_rules(f"{path}.{name}".lstrip("."), item, properties[name])
            else:
                yield from _check_rules(f"{path}[{name}]", item, of.get("additionalProperties", {}))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _check_rules(f"{path}[{index}]", item, of.get("items", {}))


def _make_invalid(path: str, value: Any, why: str) -> _Problem:
    return _Problem(f"{path}: Invalid value: {_format_value(value)}: {path} in body {why}")


def _format_value(value: Any) -> str:
    """Return a value as Go prints it in an error."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return _format_number(value, _name_type(value) == "integer")
    return _quote(value)


def _quote(value: Any) -> str:
    return hide_url_credentials(json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True))


def _format_number(number: float, as_integer: bool) -> str:
    """Return a number as Go's %v prints an int64 or a float64."""
    if as_integer:
        return str(int(number))
    try:
        shortest = Decimal(repr(float(number))).normalize()
    except OverflowError:  # an integer beyond what a float64 holds
        shortest = Decimal(number).normalize()
    exponent = shortest.adjusted()
    return f"{shortest:f}" if -4 <= exponent < 6 else f"{shortest.scaleb(-exponent):f}e{exponent:+03d}"
