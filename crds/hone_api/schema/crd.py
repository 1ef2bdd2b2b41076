"""Make CustomResourceDefinitions from the pydantic models, with structural schemas as the API server needs them."""

import copy
import json
from functools import cache
from typing import Any

from hone_api.common import DESCRIBED_AT, GROUP, VERSION
from hone_api.finetunejobs.spec import FineTuneJob
from hone_api.inferenceservices.spec import InferenceService
from hone_api.pods.pod_schema import FIELD, FIELD_RULES, make_structural_schema

Schema = dict[str, Any]
Kind = type[FineTuneJob] | type[InferenceService]

KINDS: dict[str, Kind] = {"FineTuneJob": FineTuneJob, "InferenceService": InferenceService}

SCALE = {
    "specReplicasPath": ".spec.replicas",
    "statusReplicasPath": ".status.replicas",
    "labelSelectorPath": ".status.selector",
}

# The status of an object until the operator writes one, so that no tool takes the object for ready before.
UNOBSERVED = {
    "observedGeneration": -1,
    "conditions": [
        {
            "type": "Ready",
            "status": "Unknown",
            "reason": "NotObserved",
            "message": "Hone's operator has not looked at the object yet. If it stays so, check that it runs: "
            "kubectl get pods --all-namespaces --selector app.kubernetes.io/name=hone",
            "lastTransitionTime": "1970-01-01T00:00:00Z",
        }
    ],
}

_KEPT = (
    "type",
    "enum",
    "format",
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
    "required",
    "x-kubernetes-int-or-string",
    "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys",
)


def make_definition(kind: Kind) -> dict[str, Any]:
    """Return the CustomResourceDefinition of a kind."""
    name = kind.__name__
    subresources: dict[str, Any] = {"status": {}}
    structural = copy.deepcopy(make_schema(name))
    structural["properties"]["status"]["default"] = UNOBSERVED
    if kind is InferenceService:
        subresources["scale"] = SCALE
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind.PLURAL}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": name,
                "listKind": f"{name}List",
                "plural": kind.PLURAL,
                "singular": name.lower(),
                "shortNames": kind.SHORT_NAMES,
                "categories": ["hone"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "additionalPrinterColumns": kind.PRINTER_COLUMNS,
                    "subresources": subresources,
                    "schema": {"openAPIV3Schema": structural},
                }
            ],
        },
    }


@cache
def make_schema(kind: str) -> Schema:
    """Return the structural schema of a kind. Callers must not change it."""
    json_schema = KINDS[kind].model_json_schema()
    structural = _make_structural(json_schema, json_schema["$defs"])
    structural["properties"] |= {
        "apiVersion": {"type": "string", "description": f"Always {GROUP}/{VERSION}."},
        "kind": {"type": "string", "description": f"Always {kind}."},
        "metadata": {"type": "object", "properties": {"name": {"type": "string"}}},
    }
    structural["required"] = ["spec"]
    return structural


def fill_defaults(value: Any, schema: Schema) -> Any:
    """Return a copy in which missing and null values have their defaults, as in the API server before it validates."""
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        items = schema.get("additionalProperties", {})
        found = {
            name: fill_defaults(item, properties.get(name, items))
            for name, item in value.items()
            if item is not None or properties.get(name, {}).get("nullable") or name not in properties
        }
        missing = {name: of["default"] for name, of in properties.items() if "default" in of and name not in found}
        return found | {name: fill_defaults(default, properties[name]) for name, default in missing.items()}
    if isinstance(value, list):
        return [fill_defaults(item, schema.get("items", {})) for item in value]
    return value


def _make_structural(node: Schema, definitions: dict[str, Schema]) -> Schema:
    node = _resolve_reference(node, definitions)
    if FIELD in node:
        return {"description": _make_description(node)} | make_structural_schema(node[FIELD], node[FIELD_RULES])
    found = {key: node[key] for key in _KEPT if key in node}
    if description := _make_description(node):
        found = {"description": description} | found
    if "const" in node:
        found["enum"] = [node["const"]]
    for bound, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if exclusive in node:
            found |= {bound: node[exclusive], exclusive: True}
    if node.get("x-kubernetes-int-or-string"):
        del found["type"]  # the API server reads it as integer or string
    if validations := _make_validations(node):
        found["x-kubernetes-validations"] = validations
    if "anyOf" in node:
        found |= _make_text_or_list(node["anyOf"], definitions)
    if "items" in node:
        found["items"] = _make_structural(node["items"], definitions)
    found |= _make_fields(node, definitions)
    if not found.keys() & {"type", "x-kubernetes-int-or-string"}:
        found["x-kubernetes-preserve-unknown-fields"] = True
    return found | _make_default(node, found)


def _resolve_reference(node: Schema, definitions: dict[str, Schema]) -> Schema:
    """Return the node with its $ref replaced, and without the alternative null; values next to either one win."""
    if "$ref" in node:
        return definitions[node["$ref"].rpartition("/")[2]] | {key: node[key] for key in node if key != "$ref"}
    alternatives = [one for one in node.get("anyOf", []) if one.get("type") != "null"]
    if len(alternatives) == 1:
        return _resolve_reference(alternatives[0] | {key: node[key] for key in node if key != "anyOf"}, definitions)
    return node


def _make_description(node: Schema) -> str:
    description = " ".join(node.get("description", "").split())
    for example in node.get("examples", []):
        description += f" Example: {example if isinstance(example, str) else json.dumps(example)}"
    return description


def _make_validations(node: Schema) -> list[dict[str, str]]:
    """Return the node's CEL rules; a pattern becomes one, because its message can explain what to write."""
    validations = list(node.get("x-kubernetes-validations", []))
    if "x-message" in node:
        matches = f"self.matches(r'{node['pattern']}')"
        if node.get("x-kubernetes-int-or-string"):
            matches = f"type(self) == int ? self >= 0 : {matches}"
        validations.insert(0, {"rule": matches, "message": node["x-message"]})
    return validations


def _make_text_or_list(alternatives: list[Schema], definitions: dict[str, Schema]) -> Schema:
    """Return the schema of a field that is one fixed string or a list.

    It has no type, so CEL rules are impossible, but each keyword applies to its own type.
    """
    word, items = (_make_structural(alternative, definitions) for alternative in alternatives)
    if items.pop("type") != "array" or len(word["enum"]) != 1:
        raise ValueError(f"no structural schema for {alternatives}")
    return items | {"pattern": f"^{word['enum'][0]}$"}


def _make_fields(node: Schema, definitions: dict[str, Schema]) -> Schema:
    """Return `properties` or `additionalProperties`; a map with known keys has properties, to refuse others."""
    if "properties" in node:
        fields = {name: _make_structural(field, definitions) for name, field in node["properties"].items()}
        for name, field in node["properties"].items():
            if DESCRIBED_AT in field:
                _drop_descriptions(fields[name]["items"], fields[field[DESCRIBED_AT]])
        return {"properties": fields}
    values = node.get("additionalProperties", False)
    if values is False:
        return {}
    if "propertyNames" in node:
        value = _make_structural(values, definitions) if isinstance(values, dict) else _ANYTHING
        return {"properties": dict.fromkeys(node["propertyNames"]["enum"], value)}
    if values is True:
        return {"x-kubernetes-preserve-unknown-fields": True}
    return {"additionalProperties": _make_structural(values, definitions)}


def _drop_descriptions(of: Schema, described: Schema) -> None:
    """Remove the descriptions of the fields that both schemas have."""
    for name, field in of.get("properties", {}).items():
        if known := described["properties"].get(name):
            field.pop("description", None)
            _drop_descriptions(field, known)


_ANYTHING = {"x-kubernetes-preserve-unknown-fields": True, "nullable": True}


def _make_default(node: Schema, structural: Schema) -> Schema:
    """Return a default with a meaning: for an object, {} if a field in it has a default."""
    default = node.get("default")
    if "properties" in structural:
        has_defaults = any("default" in field for field in structural["properties"].values())
        return {"default": {}} if isinstance(default, dict) and has_defaults else {}
    return {} if default in (None, [], {}) else {"default": default}
