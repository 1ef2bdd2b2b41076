"""Malformed manifests without end, made from good ones along the schema of the CRD."""

import copy
import random
from pathlib import Path
from typing import Any

import yaml
from bad_manifests import GOOD

CRDS = Path(__file__).parents[2] / "charts/hone/files/crds"
GARBAGE: list[Any] = [
    *(None, True, False, 0, -1, 1 << 63, -(1 << 70), 1e308, 0.1),
    *("", " ", "x" * 5000, "\x00", "\U0001f600", "../../etc", "-1", "1Gi", "${jndi:x}", "{{ x }}", "é" * 300),
    *([], [None], [[]], [{}], ["a", 1, None]),
    *({}, {"": ""}, {"a": {"b": [1]}}, {"name": 1}, {"name": None}, {"k" * 5000: 1}),
]


def schema(kind: str) -> dict[str, Any]:
    (file,) = CRDS.glob(f"{kind.lower()}s.yaml")
    return yaml.safe_load(file.read_text())["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]


def fuzz(random_: random.Random, kind: str, spec_schema: dict[str, Any]) -> dict[str, Any]:
    """Return a good manifest, of which some fields are dropped, doubled, or made something else; seldom all of it."""
    manifest: dict[str, Any] = copy.deepcopy(GOOD[kind])
    manifest["metadata"] |= {"namespace": "team", "uid": "u", "generation": 1, "resourceVersion": "1"}
    if random_.random() < 0.02:
        manifest["spec"] = random_.choice(GARBAGE)
        return manifest
    for _ in range(random_.randint(1, 6)):
        place, node = manifest["spec"], spec_schema
        while True:
            properties = node.get("properties") or {}
            name = random_.choice([*properties, "unknown"]) if properties else random_.choice("abc")
            node = properties.get(name) or {}
            inner = place.get(name)
            if isinstance(inner, dict) and random_.random() < 0.7:
                place = inner
                continue
            if node.get("properties") and random_.random() < 0.6:
                place[name] = place = {}
                continue
            break
        if random_.random() < 0.15:
            place.pop(name, None)
        else:
            place[name] = copy.deepcopy(random_.choice(GARBAGE))
    return manifest
