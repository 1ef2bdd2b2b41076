"""Check values that users write with Kubernetes' own names by the types of Kubernetes' definitions.

The API server checks them by the definition of the kind, so this matters for objects that were stored under an earlier
definition, and for manifests that no API server has seen: code that reads the values can rely on their types. In: a
field such as `PodSpec.volumes` and its value. Out: the first place with another type.
"""

from collections.abc import Iterator
from typing import Any, Self

from pydantic import model_validator

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
    """A model with fields of types of Kubernetes. Raises ValidationError for values of other types."""

    @model_validator(mode="after")
    def _check_types(self) -> Self:
        for name in self.model_fields_set:
            field = type(self).model_fields[name]
            extra = field.json_schema_extra
            value = getattr(self, name)
            if not isinstance(extra, dict) or FIELD not in extra or value is None:
                continue
            if problem := find_type_error(str(extra[FIELD]), value, field.alias or name):
                raise ValueError(problem)
        return self


def find_type_error(field: str, value: Any, path: str) -> str | None:
    """Return a sentence about the first value at or below `path` that has another type than the field of Kubernetes."""
    name, _, property_name = field.partition(".")
    return _check(load_definitions()[name]["properties"][property_name], value, path)


def _check(node: Schema, value: Any, path: str) -> str | None:
    reference = node.get("$ref")
    if reference in _TEXT_OR_INTEGER:
        is_right = isinstance(value, str | int) and not isinstance(value, bool)
        return None if is_right else f"{path} must be a string or a whole number"
    if reference:
        return _check_definition(reference, value, path)
    kind = node["type"]
    if not isinstance(value, _TYPES[kind]) or (isinstance(value, bool) and kind != "boolean"):
        return f"{path} must be of type {kind}"
    if isinstance(value, list):
        return _find_first(_check(node["items"], item, f"{path}[{index}]") for index, item in enumerate(value))
    if isinstance(value, dict):
        return _find_first(_check(node["additionalProperties"], value[key], f"{path}.{key}") for key in value)
    return None


def _check_definition(name: str, value: Any, path: str) -> str | None:
    if not isinstance(value, dict):
        return f"{path} must be of type object"
    definition = load_definitions()[name]
    for required in (*definition.get("required", []), *pod_rules.REQUIRED.get(name, [])):
        if required not in value:
            return f"{path}.{required} is missing"
    known = definition["properties"]
    return _find_first(_check(known[key], value[key], f"{path}.{key}") for key in value if key in known)


def _find_first(problems: Iterator[str | None]) -> str | None:
    return next(filter(None, problems), None)
