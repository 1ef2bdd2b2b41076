"""Values that a CRD's schema allows, for tests that edit every field."""

from typing import Any

from hypothesis import strategies as st

Object = dict[str, Any]
Path = tuple[str, ...]

NAMES = st.sampled_from(["first", "second", "third"])
_TERM = {"matchExpressions": [{"key": "pool", "operator": "Exists"}]}
_NODE = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [_TERM]}}
_POD = {"topologyKey": "zone", "labelSelector": {"matchLabels": {"app": "x"}}}
# Strategies for fields whose schema allows more than Kubernetes, or more than these tests need.
WIDER_IN_THE_SCHEMA: dict[str, st.SearchStrategy[Any]] = {
    "affinity": st.sampled_from(
        [
            {"nodeAffinity": _NODE},
            {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [_POD]}},
            {"nodeAffinity": _NODE, "podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [_POD]}},
        ]
    ),
    "cpu": st.sampled_from(["1", "1000m", "0.5", "1500m", 2]),
    "memory": st.sampled_from(["1Gi", "1024Mi", "1.5Gi", "2G", "2000M"]),
    "sharedMemory": st.sampled_from(["64Mi", "0.5Gi", "8Gi", "1G"]),
    "gpuResource": st.sampled_from(["amd.com/gpu", "amd.com/cpx_nps1"]),
    "image": st.sampled_from(["own:1", "own:2"]),
    "path": st.sampled_from(["a", "a/b"]),
    "revision": st.sampled_from(["main", "v1"]),
}


def values(schema: Object, name: str = "") -> st.SearchStrategy[Any]:
    """Return a strategy for the values of a field."""
    if name in WIDER_IN_THE_SCHEMA:
        return WIDER_IN_THE_SCHEMA[name]
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    kind = schema.get("type")
    if kind == "object" and "properties" in schema:
        required = set(schema.get("required", []))
        parts = {key: values(part, key) for key, part in schema["properties"].items()}
        return st.fixed_dictionaries(
            {key: part for key, part in parts.items() if key in required},
            optional={key: part for key, part in parts.items() if key not in required},
        )
    if kind == "object":
        return st.dictionaries(NAMES, values(schema.get("additionalProperties") or {"type": "string"}), max_size=2)
    if kind == "array":
        items = values(schema["items"], name)
        keys = schema.get("x-kubernetes-list-map-keys")
        unique = (lambda item: tuple(item.get(key) for key in keys)) if keys else repr
        least = schema.get("minItems", 0)
        return st.lists(items, min_size=least, max_size=max(2, least), unique_by=unique)
    if kind == "boolean":
        return st.booleans()
    if kind == "integer":
        least = schema.get("minimum", 0)
        return st.integers(least, min(schema.get("maximum", least + 5), least + 5))
    if kind == "number":
        return st.sampled_from([schema.get("minimum", 0.5), schema.get("maximum", 0.5)])
    return NAMES


def fields(schema: Object, path: Path = ()) -> list[tuple[Path, Object]]:
    """Return path and schema of every field, at every depth. Items of lists count as values."""
    found = []
    for name, part in schema.get("properties", {}).items():
        found.append(((*path, name), part))
        found += fields(part, (*path, name))
    return found


def with_value(spec: Object, path: Path, value: Any) -> Object:
    """Return the spec with another value of a field; None removes it."""
    first, *rest = path
    changed = dict(spec)
    if rest:
        changed[first] = with_value(spec.get(first) or {}, tuple(rest), value)
    elif value is None:
        changed.pop(first, None)
    else:
        changed[first] = value
    return changed
