"""Hone takes over fields of a child by its managedFields."""

from typing import Any

import pytest
from hone_operator.objects.resources import Object
from hone_operator.reconcile.field_takeover import (
    _merge_fields,
    build_named_takeover_patch,
    build_restore_patch,
    build_takeover_patch,
)
from hypothesis import given
from hypothesis import strategies as st

NAMES = st.sampled_from(["f:metadata", "f:spec", "f:data", "f:template", "f:labels", "f:env", "k:{}", "."])
FIELDS: st.SearchStrategy[Any] = st.recursive(
    st.just({}), lambda inner: st.dictionaries(NAMES, inner, max_size=3), max_leaves=12
)


def entry(manager: str, operation: str, fields: Object, subresource: str = "") -> Object:
    found = {"manager": manager, "operation": operation, "apiVersion": "apps/v1", "fieldsType": "FieldsV1"}
    return found | {"fieldsV1": fields} | ({"subresource": subresource} if subresource else {})


def child(*entries: Object) -> Object:
    return {"apiVersion": "apps/v1", "metadata": {"uid": "u", "resourceVersion": "1", "managedFields": list(entries)}}


def entries_of(patch: Object | None) -> list[Object]:
    assert patch
    assert {name: patch["metadata"][name] for name in ("uid", "resourceVersion")} == {
        "uid": "u",
        "resourceVersion": "1",
    }
    found: list[Object] = patch["metadata"]["managedFields"]
    return found


def paths(fields: Object, prefix: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
    """Return the leaves of a set of fields."""
    found = set[tuple[str, ...]]()
    for name, value in fields.items():
        found |= paths(value, (*prefix, name)) if value else {(*prefix, name)}
    return found


def test_fields_that_hone_wrote_without_apply_become_applied() -> None:
    applied, written = entry("hone", "Apply", {"f:spec": {"f:a": {}}}), entry("hone", "Update", {"f:spec": {"f:b": {}}})
    theirs = entry("kubectl", "Update", {"f:spec": {"f:c": {}}})
    status = entry("hone", "Update", {"f:status": {}}, "status")
    kept = entries_of(build_takeover_patch(child(applied, written, theirs, status)))
    assert kept[:2] == [theirs, status]
    assert kept[2]["fieldsV1"] == {"f:spec": {"f:a": {}, "f:b": {}}}
    assert (kept[2]["manager"], kept[2]["operation"]) == ("hone", "Apply")


def test_nothing_is_taken_over_of_a_child_that_hone_applies() -> None:
    applied, theirs = entry("hone", "Apply", {"f:spec": {}}), entry("kubectl", "Update", {"f:spec": {}})
    assert build_takeover_patch(child(applied, theirs)) is None
    assert build_takeover_patch(child()) is None


def test_all_of_a_restored_child_is_taken_over() -> None:
    status = entry("kube-controller-manager", "Update", {"f:status": {}}, "status")
    found = child(
        entry("velero-server", "Update", {"f:spec": {"f:a": {}}}), entry("kubectl", "Apply", {"f:data": {}}), status
    )
    kept = entries_of(build_takeover_patch(found))
    assert kept[0] == status
    assert kept[1]["fieldsV1"] == {"f:spec": {"f:a": {}}, "f:data": {}}


ENV = "spec.template.spec.containers[0].env[1]"
SECRET = 'k:{"name":"SECRET"}'
PROBE = "spec.template.spec.containers[0].readinessProbe"
HTTP = 'k:{"containerPort":8001,"protocol":"TCP"}'


def container(**fields: Any) -> Object:
    return {"spec": {"template": {"spec": {"containers": [{"name": "engine", **fields}]}}}}


def in_container(fields: Object, name: str = "engine") -> Object:
    key = f'k:{{"name":"{name}"}}'
    return {"f:spec": {"f:template": {"f:spec": {"f:containers": {key: fields}}}}}


DESIRED = container(
    env=[{"name": "SECRET", "valueFrom": {}}], readinessProbe={"httpGet": {}}, ports=[{"containerPort": 8000}]
)
CASES = {
    "a value where Hone has a source": (
        f'{ENV}.valueFrom: Invalid value: "": may not be specified when `value` is not empty',
        in_container({"f:env": {SECRET: {"f:value": {}, "f:name": {}}}}),
        in_container({"f:env": {SECRET: {"f:value": {}}}}),
    ),
    "another handler of a probe": (
        f"{PROBE}.tcpSocket: Forbidden: may not specify more than 1 handler type",
        in_container({"f:readinessProbe": {"f:tcpSocket": {"f:port": {}}, "f:periodSeconds": {}}}),
        in_container({"f:readinessProbe": {"f:tcpSocket": {"f:port": {}}}}),
    ),
    "a port of the same name": (
        'spec.template.spec.containers[0].ports[1].name: Duplicate value: "http"',
        in_container({"f:ports": {HTTP: {".": {}, "f:name": {}}, 'k:{"containerPort":9,"protocol":"TCP"}': {}}}),
        in_container({"f:ports": {HTTP: {".": {}, "f:name": {}}}}),
    ),
    "a variable of a container of somebody else's": (
        f'{ENV}.valueFrom: Invalid value: "": may not be specified when `value` is not empty',
        in_container({"f:env": {SECRET: {"f:value": {}}}}, "audit"),
        {},
    ),
    "a field that nobody else wrote": (
        f'{ENV}.valueFrom: Invalid value: "": may not be specified when `value` is not empty',
        {"f:spec": {"f:minReadySeconds": {}}},
        {},
    ),
    "fields that the sentence names": (
        "spec: Invalid value: {}: minAvailable and maxUnavailable cannot be both set",
        {"f:spec": {"f:minAvailable": {}, "f:unhealthyPodEvictionPolicy": {}}},
        {"f:spec": {"f:minAvailable": {}}},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_only_fields_that_the_refusal_names_are_taken_over(name: str) -> None:
    message, theirs, taken = CASES[name]
    others = in_container({"f:image": {}}, "audit") | {"f:metadata": {"f:labels": {}}}
    found = child(
        entry("hone", "Apply", {"f:spec": {"f:a": {}}}), entry("kubectl", "Update", _merge_fields(theirs, others))
    )
    found |= container(ports=[{"containerPort": 8001, "name": "http"}, {"containerPort": 9}])
    patch = build_named_takeover_patch(found, DESIRED, f'Deployment.apps "faq" is invalid: [{message}, {message}]')
    if not taken:
        assert patch is None
        return
    left, applied = entries_of(patch)
    assert paths(applied["fieldsV1"]) == paths(taken) | {("f:spec", "f:a")}
    assert paths(left["fieldsV1"]) == (paths(theirs) | paths(others)) - paths(taken)


@given(FIELDS, FIELDS, st.sampled_from([message for message, _, _ in CASES.values()]))
def test_taken_and_left_fields_together_are_all_fields(theirs: Object, ours: Object, message: str) -> None:
    found = child(entry("hone", "Apply", ours), entry("kubectl", "Update", theirs)) | container()
    patch = build_named_takeover_patch(found, DESIRED, message)
    if patch is None:
        return
    *left, applied = entries_of(patch)
    all_left = set().union(*(paths(each["fieldsV1"]) for each in left))
    taken = paths(applied["fieldsV1"])
    for path in paths(ours) | (paths(theirs) - all_left):
        assert any(each[: len(path)] == path for each in taken), path


def test_a_takeover_that_did_not_help_is_undone() -> None:
    before = child(entry("hone", "Apply", {"f:spec": {}}), entry("kubectl", "Update", {"f:spec": {"f:a": {}}}))
    taken = child(entry("hone", "Apply", {"f:spec": {"f:a": {}}}))
    taken["metadata"]["resourceVersion"] = "2"
    patch = build_restore_patch(before, taken)["metadata"]
    assert patch == before["metadata"] | {"resourceVersion": "2"}
