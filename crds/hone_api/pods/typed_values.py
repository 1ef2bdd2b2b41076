"""Check values that users write with Kubernetes' own names by the types of Kubernetes' definitions.

The API server checks them by the definition of the kind, so this matters for objects that were stored under an earlier
definition, and for manifests that no API server has seen: code that reads the values can rely on their types. In: a
field such as `PodSpec.volumes` and its value. Out: the value without the nulls that the API server leaves out.
"""

from typing import Any

from pydantic import ValidationInfo, field_validator

from hone_api.common import ApiModel
from hone_api.pods import pod_rules
from hone_api.pods.pod_schema import FIELD, Schema, load_definitions

_TYPES: dict[str, tuple[type, ...]] = {
    "array": (list,),
    "object": (dict,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
}
_TEXT_OR_INTEGER = ("Quantity", "IntOrString")


class KubernetesTyped(ApiModel):
    """A model with fields that are `typed_by` Kubernetes. Raises ValidationError for values of other types."""

    @field_validator("*", mode="before")
    @classmethod
    def _read_by_type(cls, value: Any, info: ValidationInfo) -> Any:
        field = cls.model_fields[str(info.field_name)]
        extra = field.json_schema_extra
        if not isinstance(extra, dict) or FIELD not in extra:
            return value
        return read_typed(str(extra[FIELD]), value, field.alias or str(info.field_name))


def read_typed(field: str, value: Any, path: str) -> Any:
    """Return the value of a field of Kubernetes without its nulls, which the API server leaves out.

    Raises ValueError for the first value at or below `path` that has another type.
    """
    name, _, property_name = field.partition(".")
    return _read(load_definitions()[name]["properties"][property_name], value, path)


def _read(node: Schema, value: Any, path: str) -> Any:
    reference = node.get("$ref")
    if reference in _TEXT_OR_INTEGER:
        if not isinstance(value, str | int) or isinstance(value, bool):
            raise ValueError(f"{path} must be a string or a whole number")
        return value
    if reference:
        return _read_definition(reference, value, path)
    kind = node["type"]
    if not isinstance(value, _TYPES[kind]) or (isinstance(value, bool) and kind != "boolean"):
        raise ValueError(f"{path} must be of type {kind}")
    if isinstance(value, list):
        return [_read(node["items"], item, f"{path}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, dict):
        return {key: _read(node["additionalProperties"], item, f"{path}.{key}") for key, item in value.items()}
    return value


def _read_definition(name: str, value: Any, path: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{path} must be of type object")
    definition = load_definitions()[name]
    known = definition["properties"]
    given = {key: item for key, item in value.items() if item is not None or key not in known}
    for required in (*definition.get("required", []), *pod_rules.REQUIRED.get(name, [])):
        if required not in given:
            raise ValueError(f"{path}.{required} is missing")
    return {key: _read(known[key], item, f"{path}.{key}") if key in known else item for key, item in given.items()}
