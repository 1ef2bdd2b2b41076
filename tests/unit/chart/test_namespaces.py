"""The fields of a Hone object refer only to its own namespace."""

from pathlib import Path
from typing import Any

import pytest
import yaml

CRDS = sorted((Path(__file__).parents[3] / "charts/hone/files/crds").glob("*.yaml"))


def fields(schema: dict[str, Any]) -> set[str]:
    """Return the names of all fields, at every depth."""
    found = set(schema.get("properties") or {})
    inner = [*(schema.get("properties") or {}).values(), schema.get("items"), schema.get("additionalProperties")]
    for each in inner:
        if isinstance(each, dict):
            found |= fields(each)
    return found


@pytest.mark.parametrize("file", CRDS, ids=lambda file: file.stem)
def test_no_field_refers_to_another_namespace(file: Path) -> None:
    for version in yaml.safe_load(file.read_text())["spec"]["versions"]:
        found = fields(version["schema"]["openAPIV3Schema"])
        assert {"claim", "tokenSecret", "apiKeySecret", "serviceAccountName"} & found
        # The fields of affinity only select pods for scheduling, and read nothing.
        assert {name for name in found if "namespace" in name.lower()} <= {
            "namespaces", "namespaceSelector", "shareProcessNamespace",
        }  # fmt: skip
