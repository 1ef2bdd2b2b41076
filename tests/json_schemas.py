"""JSON schemas for properties: such that every answer that keeps to them is short."""

from typing import Any

from hypothesis import strategies as st

NAMES = ("name", "city of birth", "größe", 'quo"te', "back\\slash", "n", "a", "ab")
MOST = 3
Schema = dict[str, Any]


def schemas() -> st.SearchStrategy[Schema]:
    """Objects, lists and values within each other, with what JSON schema says about each, and references."""
    return st.recursive(_values(), _containers, max_leaves=6).flatmap(_maybe_referred)


def _values() -> st.SearchStrategy[Schema]:
    bounds = st.integers(-1000, 1000)
    return st.one_of(
        st.builds(
            lambda low, size, kind: {"type": kind, "minimum": low, "maximum": low + size},
            bounds,
            st.integers(0, 50),
            st.sampled_from(["integer", "integer"]),
        ),
        st.builds(
            lambda low, more: {"type": "string", "minLength": low, "maxLength": low + more}, *[st.integers(0, 5)] * 2
        ),
        st.sampled_from(["^[a-z]{1,4}$", "^(yes|no)$", r"^\d{3}-\d{2}$"]).map(
            lambda one: {"type": "string", "pattern": one}
        ),
        st.sampled_from(["date", "time", "date-time", "uuid", "ipv4"]).map(
            lambda one: {"type": "string", "format": one}
        ),
        st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"const": "fixed"}, {"const": 7}]),
        st.lists(st.sampled_from(["red", "green", 'b"lue', 3, None, True]), min_size=1, unique=True).map(
            lambda values: {"enum": values}
        ),
    )


def _containers(inner: st.SearchStrategy[Schema]) -> st.SearchStrategy[Schema]:
    return st.one_of(
        st.builds(_object, st.dictionaries(st.sampled_from(NAMES), inner, max_size=MOST), st.integers(0, 2**MOST)),
        st.builds(
            lambda items, low, more: {"type": "array", "items": items, "minItems": low, "maxItems": low + more},
            inner,
            st.integers(0, 2),
            st.integers(0, 2),
        ),
        st.lists(inner, min_size=1, max_size=MOST).map(lambda several: {"anyOf": several}),
        st.lists(inner, min_size=1, max_size=MOST).map(
            lambda several: {"type": "array", "prefixItems": several, "items": False}
        ),
    )


def _object(properties: Schema, chosen: int) -> Schema:
    required = [name for place, name in enumerate(properties) if chosen >> place & 1]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _maybe_referred(schema: Schema) -> st.SearchStrategy[Schema]:
    referring = {"$defs": {"it": schema}, "type": "array", "items": {"$ref": "#/$defs/it"}, "maxItems": 2}
    return st.sampled_from([schema, referring])
