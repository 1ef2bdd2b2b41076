"""Record the fields of a spec from which a child was made, so that later versions can recognize a user's changes.

One digest of the complete spec would change with every field that a new version adds, and with every changed default,
although nobody touched the object. So each field that the object sets has its own digest, by its path. A field that is
missing on either side counts as its present default. A field that this version does not know is ignored: a newer
version wrote it before a rollback.
"""

import json
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, NamedTuple

from hone_api.common import ApiModel
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from hone_operator.objects.drift import compute_digest, get_annotation
from hone_operator.objects.resources import Object

# Annotation of a child with pods: the record of the fields from which the pods were made.
FIELDS_ANNOTATION = "hone.dev/made-from-fields"

_Scalar = str | int | float | bool | None
_SCALARS = (str, int, float, bool, type(None))
# Digests of values, by the path of the field.
FieldDigests = dict[str, str]


class _Field(NamedTuple):
    path: str
    value: Any
    default: Any
    is_set: bool


def record_fields(spec: ApiModel, names: Iterable[str]) -> FieldDigests:
    """Return the digests of all values that the object sets in these fields of its spec."""
    return {
        field.path: _compute_digest(field.value) for field in _list_set_fields(spec, set(), set(names)) if field.is_set
    }


def read_field_record(observed: Object) -> FieldDigests | None:
    """Return a child's record of fields; None where it has none."""
    try:
        found = json.loads(get_annotation(observed, FIELDS_ANNOTATION) or "")
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def have_fields_changed(recorded: FieldDigests, spec: ApiModel, names: Iterable[str]) -> bool:
    """Return whether the value of one of these fields differs from the record."""
    for field in _list_set_fields(spec, _with_parents(recorded), set(names)):
        default = _compute_digest(field.default)
        if recorded.get(field.path, default) != (_compute_digest(field.value) if field.is_set else default):
            return True
    return False


def _with_parents(paths: Iterable[str]) -> set[str]:
    """Return the paths, and the paths of all their parents."""
    found: set[str] = set()
    for path in paths:
        while path and path not in found:
            found.add(path)
            path = path.rpartition(".")[0]
    return found


def _list_set_fields(model: BaseModel, recorded: set[str], names: set[str]) -> list[_Field]:
    """Return the fields that are set now, or were set in the record: all others have their defaults."""
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


def _compute_digest(value: Any) -> str:
    return _compute_scalar_digest(value) if isinstance(value, _SCALARS) else compute_digest(_to_json_data(value))


@lru_cache(1024, typed=True)
def _compute_scalar_digest(value: _Scalar) -> str:
    """Return the digest of a scalar, from a cache: most fields have few different values."""
    return compute_digest(value)


def _to_json_data(value: Any) -> Any:
    """Return a value as JSON data; 0 for an empty list, as for a list of models without items."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    if isinstance(value, dict):
        return {name: _to_json_data(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_to_json_data(one) for one in value] or 0
    return value
