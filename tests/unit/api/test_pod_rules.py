"""`hone validate` refuses exactly what Kubernetes would refuse in the pods, with the field."""

from functools import cache
from typing import Any

import pytest
from hone_api.pods.pod_rules import ENUMS, OF_FIELD, OF_TYPE, PATTERNS, RANGES, REQUIRED
from hone_api.pods.pod_schema import load_definitions
from hone_api.schema.crd import KINDS, make_schema
from hone_api.schema.validation import validate_object
from pod_cases import ACCEPTED, LATER, REFUSED, UNWISE

BASE: dict[str, Any] = {
    "FineTuneJob": {"model": {"name": "a/b"}, "dataset": {"name": "c/d"}, "lora": {}},
    "InferenceService": {"model": {"name": "a/b"}},
}


def manifest(kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": "hone.dev/v1alpha1", "kind": kind, "metadata": {"name": "a"}, "spec": BASE[kind] | spec}


@cache
def refusals(name: str) -> list[str]:
    return validate_object(manifest("FineTuneJob", (REFUSED | UNWISE)[name]))


@pytest.mark.parametrize("name", [*REFUSED, *UNWISE])
def test_an_impossible_pod_is_refused_with_its_field(name: str) -> None:
    spec, sentences = (REFUSED | UNWISE)[name], refusals(name)
    part = "spec.pod" if "pod" in spec else "spec.resources"
    assert sentences
    assert all(sentence.startswith(part) for sentence in sentences)


@pytest.mark.parametrize("spec", [*ACCEPTED.values(), *(spec for spec, _ in LATER.values())], ids=[*ACCEPTED, *LATER])
def test_a_possible_pod_is_accepted(spec: dict[str, Any]) -> None:
    assert validate_object(manifest("FineTuneJob", spec)) == []


def test_both_kinds_have_the_rules_of_pods() -> None:
    jobs, services = (make_schema(kind)["properties"]["spec"]["properties"] for kind in KINDS)
    assert jobs["pod"] == services["pod"] | {"description": jobs["pod"]["description"]}
    of = "x-kubernetes-validations"
    assert jobs["resources"][of] == services["resources"][of]


@pytest.mark.parametrize("path", sorted({*OF_FIELD, *ENUMS, *PATTERNS, *RANGES}))
def test_each_rule_is_about_a_field_that_exists(path: str) -> None:
    name, _, field = path.partition(".")
    assert field.rstrip("[]{}") in load_definitions()[name]["properties"]


@pytest.mark.parametrize("name", sorted({*OF_TYPE, *REQUIRED}))
def test_each_rule_is_about_a_type_that_exists(name: str) -> None:
    assert {*REQUIRED.get(name, [])} <= load_definitions()[name]["properties"].keys()


def test_every_rule_refuses_something() -> None:
    """Each message of the tables occurs in a case, so that no rule is without effect."""
    said = {sentence.rpartition(": ")[2] for name in [*REFUSED, *UNWISE] for sentence in refusals(name)}
    rules = [rule["message"] for of in (OF_TYPE, OF_FIELD) for each in of.values() for rule in each]
    assert not [message for message in rules if message.rpartition(": ")[2] not in said]


@pytest.mark.parametrize(
    ("part", "where"),
    [
        ({"env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]}, "env[1]"),
        ({"volumeMounts": [{"name": "v", "mountPath": "/a"}] * 2}, "volumeMounts[1]"),
        ({"ports": [{"containerPort": 1, "protocol": "TCP"}, {"containerPort": 1}]}, "ports[1]"),
    ],
)
def test_duplicates_in_lists_of_lists_are_refused(part: dict[str, Any], where: str) -> None:
    container = {"name": "x", "image": "i", "restartPolicy": "Always", **part}
    pod = {"volumes": [{"name": "v", "emptyDir": {}}], "initContainers": [container]}
    [sentence] = validate_object(manifest("InferenceService", {"pod": pod}))
    assert sentence.startswith(f"spec.pod.initContainers[0].{where}: Duplicate value: ")


@pytest.mark.parametrize("kind", KINDS)
def test_every_list_of_kubernetes_is_unique_or_of_another_type(kind: str) -> None:
    def lists(of: dict[str, Any]) -> list[str]:
        inner = [*of.get("properties", {}).values(), *(of[name] for name in ("items",) if name in of)]
        own = [of["x-kubernetes-list-type"]] if "x-kubernetes-list-type" in of else []
        return own + [each for one in inner for each in lists(one)]

    assert set(lists(make_schema(kind))) <= {"atomic", "map", "set"}
