"""Values with Kubernetes' own names have the types of Kubernetes, in every model that reads them."""

from typing import Any

import pytest
from hone_api.pods.pod_options import EnvVar, PodOptions
from hone_api.schema.validation import validate_object
from odd_values import ODD_VALUES, list_paths, replace_value
from pod_page import EXAMPLES
from pydantic import ValidationError


@pytest.mark.parametrize(
    ("pod", "sentence"),
    [
        ({"containerSecurityContext": {"capabilities": [None]}}, "capabilities must be of type object"),
        ({"securityContext": {"runAsUser": "1000"}}, "securityContext.runAsUser must be of type integer"),
        ({"securityContext": {"runAsUser": True}}, "securityContext.runAsUser must be of type integer"),
        ({"securityContext": {"runAsNonRoot": 1}}, "securityContext.runAsNonRoot must be of type boolean"),
        ({"volumes": [{"emptyDir": {}}]}, r"volumes\[0\].name is missing"),
        ({"volumes": [{"name": "a", "emptyDir": {"sizeLimit": 1.5}}]}, "sizeLimit must be a string or a whole number"),
        ({"initContainers": [{"name": "a", "image": "b", "args": [1]}]}, r"s\[0\].args\[0\] must be of type string"),
        ({"affinity": {"nodeAffinity": []}}, "affinity.nodeAffinity must be of type object"),
    ],
)  # fmt: skip
def test_another_type_is_refused_with_its_place(pod: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        PodOptions.model_validate(pod)


def test_a_variable_names_its_source_by_the_types_of_kubernetes() -> None:
    with pytest.raises(ValidationError, match="secretKeyRef must be of type object"):
        EnvVar.model_validate({"name": "A", "valueFrom": {"secretKeyRef": "token"}})


def test_right_types_are_taken() -> None:
    volume = {"name": "a", "emptyDir": {"sizeLimit": 5}}
    found = PodOptions.model_validate({"volumes": [volume], "securityContext": {"runAsUser": 1000, "sysctls": []}})
    assert found.volumes == [volume]


def test_nulls_are_left_out_as_the_api_server_does() -> None:
    volumes: list[Any] = [{"name": "a", "emptyDir": None, "hostPath": {"path": "/a", "type": None}}]
    found = PodOptions.model_validate({"volumes": volumes, "hostAliases": None})
    assert found.volumes == [{"name": "a", "hostPath": {"path": "/a"}}]
    with pytest.raises(ValidationError, match=r"dnsConfig.nameservers\[0\] must be of type string"):
        PodOptions.model_validate({"dnsConfig": {"nameservers": [None]}})


@pytest.mark.parametrize("manifest", EXAMPLES, ids=lambda one: one["metadata"]["name"])
def test_what_is_refused_here_is_refused_by_the_schema_too(manifest: dict[str, Any]) -> None:
    for path in list_paths(manifest["spec"]["pod"]):
        for odd in ODD_VALUES:
            changed = replace_value(manifest, ("pod", *path), odd)
            try:
                PodOptions.model_validate(changed["spec"]["pod"])
            except ValidationError:
                assert validate_object(changed), f"{odd!r} at {path}"
