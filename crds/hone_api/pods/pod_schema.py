"""Structural schemas of the parts of a pod that users write with Kubernetes' own names.

podschema.json has Kubernetes' definitions, read from an API server by `make pod-schema`. A field of a model names its
type by `declare_kubernetes_type`; `crd` then puts the structural schema in its place, so that the API server and
`hone validate` refuse a misspelt field with its path. Lists, maps and strings get bounds, which Kubernetes leaves out.
Descriptions stay in Kubernetes' own reference: a CustomResourceDefinition must fit the annotation that `kubectl apply`
writes.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

from hone_api.pods import pod_rules

Schema = dict[str, Any]

_RULES = "x-kubernetes-validations"
_LIST_TYPE = "x-kubernetes-list-type"
FIELD, FIELD_RULES = "x-kubernetes-field", "x-field-rules"

MOST_ITEMS = 64
MOST_PROPERTIES = 64
MOST_CHARACTERS = 4096
MOST_INT32 = 2**31 - 1

# The greatest number of items or characters, where it is not the usual one.
BOUNDS: dict[str, int] = {
    "PodSpec.initContainers": 16,
    "PodSpec.volumes": 32,
    "PodSpec.topologySpreadConstraints": 16,
    "Container.env": 100,
    "Container.envFrom": 32,
    "Container.volumeMounts": 32,
    "Container.image": 512,
    "Container.name": 63,
    "EnvVar.value": 32768,
    "ProjectedVolumeSource.sources": 16,
    "DownwardAPIVolumeSource.items": 32,
    "DownwardAPIProjection.items": 32,
    "Volume.name": 63,
    "VolumeMount.name": 63,
    "VolumeMount.mountPath": 1024,
    # Kubernetes' own limits. Its refusals repeat the value, and every value of a list.
    "HostAlias.hostnames[]": 253,
    "HostAlias.ip": 45,
    "PodDNSConfig.nameservers": 3,
    "PodDNSConfig.nameservers[]": 45,
    "PodDNSConfig.searches": 32,
    "PodDNSConfig.searches[]": 254,
    "ContainerPort.name": 15,
    "ContainerPort.hostIP": 45,
    "Sysctl.name": 253,
    "LabelSelector.matchLabels{}": 63,
    "ObjectMeta.labels{}": 63,
    "LabelSelectorRequirement.key": 317,
    "LabelSelectorRequirement.values[]": 63,
    "NodeSelectorRequirement.key": 317,
    "NodeSelectorRequirement.values[]": 253,
    "TopologySpreadConstraint.topologyKey": 317,
    "TopologySpreadConstraint.matchLabelKeys[]": 317,
    "PodAffinityTerm.topologyKey": 317,
    "PodAffinityTerm.namespaces[]": 63,
    "PodAffinityTerm.matchLabelKeys[]": 317,
    "PodAffinityTerm.mismatchLabelKeys[]": 317,
    "PersistentVolumeClaimVolumeSource.claimName": 253,
    "PersistentVolumeClaimSpec.storageClassName": 253,
    "SecretVolumeSource.secretName": 253,
    "KeyToPath.key": 253,
    "PodSpec.runtimeClassName": 253,
    **{
        f"{reference}.name": 253
        for reference in (
            "ConfigMapEnvSource",
            "ConfigMapKeySelector",
            "ConfigMapProjection",
            "ConfigMapVolumeSource",
            "LocalObjectReference",
            "SecretEnvSource",
            "SecretKeySelector",
            "SecretProjection",
        )
    },
    **{f"{source}.key": 253 for source in ("ConfigMapKeySelector", "SecretKeySelector")},
    "VolumeMount.subPath": 1024,
    "VolumeMount.subPathExpr": 1024,
    "Container.ports": 32,
    "Capabilities.add[]": 63,
    "Capabilities.drop[]": 63,
    "CSIVolumeSource.driver": 63,
    "ObjectFieldSelector.fieldPath": 512,
    "ResourceFieldSelector.resource": 253,
    "KeyToPath.path": 1024,
    "DownwardAPIVolumeFile.path": 1024,
    "ServiceAccountTokenProjection.path": 1024,
    "PodSecurityContext.sysctls": 32,
}

LEAST: dict[str, int] = {"Container.name": 1, "Volume.name": 1, "VolumeMount.name": 1, "VolumeMount.mountPath": 1} | {
    f"{name}.{field}": 1
    for name, fields in pod_rules.REQUIRED.items()
    for field in fields
    if field in ("name", "image", "secretName")
}

# A key of a list of type map must be required or have a default; this one is Kubernetes' own.
DEFAULTS = {"ContainerPort.protocol": "TCP"}

QUANTITY: Schema = {
    "x-kubernetes-int-or-string": True,
    "maxLength": 32,
    "x-kubernetes-validations": [
        {
            "rule": "type(self) == int ? self >= 0 : self.matches(r'^[+]?([0-9]+([.][0-9]*)?|[.][0-9]+)"
            "([numkMGTPE]|[KMGTPE]i|[eE][+-]?[0-9]+)?$')",
            "message": "must be a quantity such as 8, 500m or 64Gi",
        }
    ],
}
INT_OR_STRING: Schema = {"x-kubernetes-int-or-string": True, "maxLength": 253}

REFERENCE = "https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/pod-v1/"


def declare_kubernetes_type(field: str, **field_rules: list[dict[str, str]]) -> dict[str, Any]:
    """Return the `json_schema_extra` of a value with the type of a Kubernetes field, such as `PodSpec.volumes`.

    `field_rules` are CEL rules for fields of the object, or of the list's items.
    """
    return {FIELD: field, FIELD_RULES: field_rules}


def make_structural_schema(field: str, field_rules: dict[str, list[dict[str, str]]]) -> Schema:
    """Return the structural schema of a Kubernetes field, with CEL rules on the fields in it."""
    name, _, property_name = field.partition(".")
    found = _make_node(field, load_definitions()[name]["properties"][property_name])
    of = found.get("items", found)
    for inner, rules in field_rules.items():
        of["properties"][inner][_RULES] = [*of["properties"][inner].get(_RULES, []), *rules]
    return found


@cache
def load_definitions() -> dict[str, Schema]:
    """Return Kubernetes' definitions by their short names. Callers must not change them."""
    found: dict[str, Schema] = json.loads(Path(__file__).with_name("pod_schema.json").read_text())
    return found


def _make_node(path: str, node: Schema) -> Schema:
    found = _make_referenced(node["$ref"]) if "$ref" in node else _make_plain(path, node)
    if rules := pod_rules.OF_FIELD.get(path):
        found[_RULES] = [*found.get(_RULES, []), *rules]
    return found


def _make_plain(path: str, node: Schema) -> Schema:
    """Return the schema of a value without a named type of Kubernetes, with its bounds."""
    found = {key: value for key, value in node.items() if key not in ("items", "additionalProperties", "format")}
    if found.get(_LIST_TYPE) == "atomic":  # the default, which would only make the definition larger
        del found[_LIST_TYPE]
    if path in DEFAULTS:
        found["default"] = DEFAULTS[path]
    if path in pod_rules.ENUMS:
        found["enum"] = pod_rules.ENUMS[path]
    least, most = pod_rules.RANGES.get(path, (0, None))
    match node["type"]:
        case "array":
            found |= {"maxItems": most or BOUNDS.get(path, MOST_ITEMS), "items": _make_node(f"{path}[]", node["items"])}
            found |= {"minItems": least} if least else {}
        case "object":
            values = _make_node(f"{path}{{}}", node["additionalProperties"])
            found |= {"maxProperties": MOST_PROPERTIES, "additionalProperties": values}
        case "integer":
            found |= {"minimum": least, "maximum": most or MOST_INT32}
        case "string" if "enum" not in found:
            found["maxLength"] = BOUNDS.get(path, MOST_CHARACTERS)
            if path in pod_rules.PATTERNS:
                found["pattern"] = pod_rules.PATTERNS[path]
            if path in LEAST:
                found["minLength"] = LEAST[path]
    return found


def _make_referenced(name: str) -> Schema:
    if name == "Quantity":
        return dict(QUANTITY)
    if name == "IntOrString":
        return dict(INT_OR_STRING)
    of = load_definitions()[name]
    properties = {field: _make_node(f"{name}.{field}", node) for field, node in of["properties"].items()}
    found: Schema = {"type": "object", "properties": properties}
    if required := [*of.get("required", []), *pod_rules.REQUIRED.get(name, [])]:
        found["required"] = required
    return found | ({_RULES: pod_rules.OF_TYPE[name]} if name in pod_rules.OF_TYPE else {})
