"""Which fields of a spec a child was made from, so that a later version of the operator can see what a user changed.

A digest of all of a spec would change with every field that a new version adds, and with every changed default, though
nobody touched the object. So the digest of each field is kept by its path, and only for the fields that the object
itself sets. A field that is missing on either side counts as its present default, and a field that this version does
not know is ignored: it is one of a newer version, before a rollback.
"""

import json
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, NamedTuple

from hone_api.common import ApiModel
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from hone_operator.objects.drift import annotation_of, digest_of
from hone_operator.objects.resources import Object

# Annotation of a child that has pods: the record of what the object set of the fields that these are made from.
FIELDS = "hone.dev/made-from-fields"

_Scalar = str | int | float | bool | None
_SCALARS = (str, int, float, bool, type(None))
# Digests of values by the path of the field.
Fields = dict[str, str]


class _Field(NamedTuple):
    path: str
    value: Any
    default: Any
    is_set: bool


def record_fields(spec: ApiModel, names: Iterable[str]) -> Fields:
    """Return the digests of what the object sets below these fields of its spec."""
    return {field.path: _digest_of(field.value) for field in _walk(spec, set(), set(names)) if field.is_set}


def read_record(observed: Object) -> Fields | None:
    """Return the record of what a child was made from; None where it has none."""
    try:
        found = json.loads(annotation_of(observed, FIELDS) or "")
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def are_changed(recorded: Fields, spec: ApiModel, names: Iterable[str]) -> bool:
    """Return whether one of these fields has another value than in the record."""
    for field in _walk(spec, _with_parents(recorded), set(names)):
        default = _digest_of(field.default)
        if recorded.get(field.path, default) != (_digest_of(field.value) if field.is_set else default):
            return True
    return False


def _with_parents(paths: Iterable[str]) -> set[str]:
    """Return the paths, and those of the parts that they are in."""
    found: set[str] = set()
    for path in paths:
        while path and path not in found:
            found.add(path)
            path = path.rpartition(".")[0]
    return found


def _walk(model: BaseModel, recorded: set[str], names: set[str]) -> list[_Field]:
    """Return the fields that are set now, or were when the record was made: all others have their defaults."""
    found: list[_Field] = []
    _add_fields(found, model, recorded, names, "")
    return found


def _add_fields(found: list[_Field], model: BaseModel, recorded: set[str], names: set[str] | None, prefix: str) -> None:
    are_set = model.model_fields_set
    fields = type(model).model_fields
    for name in fields if recorded else are_set:
        if names is not None and name not in names:
            continue
        info = fields[name]
        path = prefix + (info.alias or name)
        if name in are_set or path in recorded:
            _add_value(found, path, getattr(model, name), info, name in are_set, recorded)


def _add_value(found: list[_Field], path: str, value: Any, info: FieldInfo, is_set: bool, recorded: set[str]) -> None:
    default = None if info.is_required() else info.default  # no field has a factory
    if isinstance(value, BaseModel):
        if not isinstance(default, BaseModel):
            found.append(_Field(path, "set", default, is_set))
        _add_fields(found, value, recorded, None, f"{path}.")
    elif isinstance(value, list) and value and all(isinstance(item, BaseModel) for item in value):
        found.append(_Field(path, len(value), 0, is_set))
        for index, item in enumerate(value):
            _add_fields(found, item, recorded, None, f"{path}.{index}.")
    elif isinstance(default, BaseModel):  # None in place of a part that has defaults
        found.append(_Field(path, None, "set", is_set))
    else:
        found.append(_Field(path, value, default, is_set))


def _digest_of(value: Any) -> str:
    return _digest_of_scalar(value) if isinstance(value, _SCALARS) else digest_of(_plain(value))


@lru_cache(1024, typed=True)
def _digest_of_scalar(value: _Scalar) -> str:
    """Return the digest of a value that comes again and again: of most fields there are few."""
    return digest_of(value)


def _plain(value: Any) -> Any:
    """Return a value as JSON data; an empty list is none of its items."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value] or 0
    return value
