"""The owner of a child, the adoption of orphans, and the binding of a write to an object."""

import copy
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hone_api.reasons import CHILD_LEAVING, NAME_CONFLICT
from hone_operator.objects import owners
from hone_operator.objects.resources import (
    CHILDREN,
    CLAIMS,
    DEPLOYMENTS,
    FINETUNEJOBS,
    INFERENCESERVICES,
    JOBS,
    OWNERS,
    PODS,
    SERVICES,
    WATCHED,
    Key,
    Object,
    Resource,
)
from hone_operator.reconcile import ownership
from hone_operator.reconcile.plan import Action, Apply, Create, Delete, Patch
from hypothesis import given
from hypothesis import strategies as st

NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
LABELS = {FINETUNEJOBS: "hone.dev/finetunejob", INFERENCESERVICES: "hone.dev/inferenceservice"}
MANAGED = {"app.kubernetes.io/managed-by": "hone"}


def owner(resource: Resource = FINETUNEJOBS, name: str = "faq", uid: str = "owner", **metadata: Any) -> Object:
    return {
        "apiVersion": resource.api_version,
        "kind": resource.kind,
        "metadata": {"name": name, "namespace": "team", "uid": uid, "creationTimestamp": "2026-03-01T11:00:00Z"}
        | metadata,
    }


def controlled(by: Object) -> list[Object]:
    metadata = by["metadata"]
    return [
        {"apiVersion": "v1", "kind": "Other", "name": "no-controller", "uid": "x"},
        {"apiVersion": by["apiVersion"], "kind": by["kind"], "name": metadata["name"], "uid": metadata["uid"],
         "controller": True},
    ]  # fmt: skip


def child(resource: Resource = JOBS, by: Object | None = None, labels: Object | None = None, **metadata: Any) -> Object:
    found: Object = {"name": "faq-train", "namespace": "team", "uid": "child"}
    found |= {"ownerReferences": controlled(by)} if by else {}
    found |= {"labels": labels} if labels else {}
    return {"apiVersion": resource.api_version, "kind": resource.kind, "metadata": found | metadata}


def other(kind: str, api_version: str = "batch/v1") -> Object:
    return {"apiVersion": api_version, "kind": kind, "metadata": {"name": "x", "namespace": "team", "uid": "x"}}


@pytest.mark.parametrize("resource", WATCHED)
@pytest.mark.parametrize("kind", OWNERS)
def test_labels_name_the_owner_of_a_child_and_mean_nothing_on_an_owner(resource: Resource, kind: Resource) -> None:
    found = owners.find_owner_key(resource, child(resource, labels={LABELS[kind]: "faq"}))
    assert found == (Key(kind, "team", "faq") if resource in CHILDREN else None)


@pytest.mark.parametrize("resource", CHILDREN)
@pytest.mark.parametrize("kind", OWNERS)
def test_the_controller_decides_before_labels(resource: Resource, kind: Resource) -> None:
    labels = {LABELS[FINETUNEJOBS]: "else", LABELS[INFERENCESERVICES]: "else"}
    found = owners.find_owner_key(resource, child(resource, by=owner(kind), labels=labels))
    assert found == Key(kind, "team", "faq")


@pytest.mark.parametrize(
    ("maker", "label", "expected"),
    [
        ("Job", FINETUNEJOBS, Key(FINETUNEJOBS, "team", "faq")),
        ("ReplicaSet", INFERENCESERVICES, Key(INFERENCESERVICES, "team", "faq")),
        ("ReplicaSet", FINETUNEJOBS, None),
        ("Job", INFERENCESERVICES, None),
        ("StatefulSet", FINETUNEJOBS, None),
        ("StatefulSet", INFERENCESERVICES, None),
    ],
)
def test_a_pod_belongs_by_its_labels_only_when_what_hone_makes_controls_it(
    maker: str, label: Resource, expected: Key | None
) -> None:
    assert owners.find_owner_key(PODS, child(PODS, by=other(maker), labels={LABELS[label]: "faq"})) == expected


def test_a_kind_of_the_same_name_from_another_group_is_no_owner() -> None:
    stranger = owner() | {"apiVersion": "example.com/v1"}
    assert owners.find_owner_key(JOBS, child(by=stranger)) is None


@pytest.mark.parametrize("labels", [None, {}, {"app": "x"}, {"hone.dev/finetunejob": ""}])
def test_a_child_without_owner_labels_has_no_owner(labels: Object | None) -> None:
    assert owners.find_owner_key(JOBS, child(labels=labels)) is None


@pytest.mark.parametrize("kind", OWNERS)
@pytest.mark.parametrize(
    ("change", "is_adopted"),
    [
        ({}, True),
        ({"namespace": "else"}, False),
        ({"labels": None}, False),
        ({"labels": MANAGED}, False),
        ({"ownerReferences": controlled(other("CronJob"))}, False),
        ({"ownerReferences": controlled(other("CronJob"))[:1]}, True),
    ],
)
def test_only_an_orphan_with_hones_labels_is_adopted(kind: Resource, change: Object, is_adopted: bool) -> None:
    found = child(labels={**MANAGED, LABELS[kind]: "faq"})
    found["metadata"] |= change
    assert ownership.is_orphan(found, owner(kind)) is is_adopted
    assert ownership.is_own(found, owner(kind)) is is_adopted
    error = ownership.explain_name_conflict([found], owner(kind))
    assert (error is None) is is_adopted
    assert error is None or (error.reason == NAME_CONFLICT and "Job faq-train" in error.message)


@pytest.mark.parametrize(
    "labels",
    [
        {LABELS[FINETUNEJOBS]: "faq"},
        {**MANAGED, LABELS[FINETUNEJOBS]: "else"},
        {**MANAGED, LABELS[INFERENCESERVICES]: "faq"},
        {"app.kubernetes.io/managed-by": "Helm", LABELS[FINETUNEJOBS]: "faq"},
    ],
)
def test_labels_that_name_somebody_else_make_no_orphan(labels: Object) -> None:
    found = child(labels=labels)
    assert not ownership.is_own(found, owner())
    assert ownership.explain_name_conflict([found], owner()) is not None
    assert ownership.is_foreign_claim(child(CLAIMS, labels=labels), owner())


def test_a_controlled_child_belongs_to_its_owner_with_any_labels() -> None:
    assert ownership.is_own(child(by=owner()), owner())
    assert ownership.explain_name_conflict([child(by=owner()), child(SERVICES, by=owner())], owner()) is None
    assert not ownership.is_own(child(by=owner(uid="earlier")), owner())


def test_a_claim_of_hone_or_no_claim_is_not_foreign() -> None:
    labels = {**MANAGED, LABELS[FINETUNEJOBS]: "faq"}
    assert not ownership.is_foreign_claim(None, owner())
    assert not ownership.is_foreign_claim(child(CLAIMS, labels=labels), owner())
    assert ownership.is_foreign_claim(child(CLAIMS), owner())
    assert ownership.is_foreign_claim(child(CLAIMS, labels=labels, by=other("StatefulSet", "apps/v1")), owner())


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (None, False),
        (child(by=owner()), False),
        (child(), False),
        (child(by=owner(uid="earlier")), True),
        (child(by=owner(INFERENCESERVICES, uid="earlier")), False),
        (child(by=owner(name="else", uid="earlier")), False),
        (child(by=owner(), deletionTimestamp="2026-03-01T12:00:00Z"), True),
    ],
)
def test_a_child_leaves_when_it_is_deleted_or_of_an_earlier_owner(found: Object | None, expected: bool) -> None:
    assert ownership.is_leaving(found, owner()) is expected


def ago(**time: int) -> str:
    return (NOW - timedelta(**time)).strftime("%Y-%m-%dT%H:%M:%SZ")


@pytest.mark.parametrize(
    ("found", "of", "words"),
    [
        (child(by=owner()), owner(), None),
        (child(by=owner(), deletionTimestamp=ago(seconds=59)), owner(), None),
        (child(by=owner(), deletionTimestamp=ago(seconds=60)), owner(), "has been in deletion since"),
        (child(by=owner(), deletionTimestamp=ago(hours=1), finalizers=["a/b"]), owner(), "held by finalizers a/b"),
        (child(by=owner(uid="old")), owner(creationTimestamp=ago(seconds=59)), None),
        (child(by=owner(uid="old")), owner(creationTimestamp=ago(seconds=60)), "(uid old)"),
        (child(by=owner(uid="old")), owner(creationTimestamp=None), None),
    ],
)
def test_a_child_whose_deletion_takes_long_is_reported(found: Object, of: Object, words: str | None) -> None:
    error = ownership.explain_leaving([child(by=owner()), found], of, NOW)
    assert (error is None) is (words is None)
    if error is not None and words is not None:
        assert error.reason == CHILD_LEAVING
        assert words in error.message
        assert "kubectl get job faq-train --namespace team" in (error.remedy or "")


BODIES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.dictionaries(st.text(max_size=3), inner, max_size=3) | st.lists(inner, max_size=3),
    max_leaves=6,
)
SPECS = st.dictionaries(st.sampled_from(["spec", "data", "x"]), BODIES, max_size=3)
METADATA = st.dictionaries(st.sampled_from(["labels", "annotations", "finalizers"]), BODIES, max_size=2)
APPLIES = st.builds(
    lambda resource, spec, metadata, in_turn: Apply(
        resource, {**spec, "metadata": {**metadata, "name": "faq-train", "namespace": "team"}}, waits_for_turn=in_turn
    ),
    st.sampled_from(CHILDREN), SPECS, METADATA, st.booleans(),
)  # fmt: skip
PATCHES = st.builds(
    lambda resource, spec, metadata: Patch(resource, "faq-train", spec | ({"metadata": metadata} if metadata else {})),
    st.sampled_from(CHILDREN), SPECS, METADATA,
)  # fmt: skip


def parts(action: Action) -> Object:
    """Return every field as plain data; the body without its uid."""
    found = copy.deepcopy(vars(action))
    for body in (found.get("body"), found.get("patch")):
        if body is not None:
            body["metadata"] = {k: v for k, v in (body.get("metadata") or {}).items() if k != "uid"}
    return found


@given(APPLIES | PATCHES, st.booleans())
def test_a_write_is_bound_to_the_found_object_and_keeps_every_other_field(
    action: Apply | Patch, is_found: bool
) -> None:
    before = copy.deepcopy(action)
    strangers = [child(PODS if action.resource != PODS else JOBS), child(action.resource, name="else")]
    bound = ownership.bind_to_uid(action, [*strangers, *([child(action.resource)] if is_found else [])])
    assert action == before
    assert type(bound) is type(action)
    assert parts(bound) == parts(action)
    body = bound.patch if isinstance(bound, Patch) else bound.body if isinstance(bound, Apply) else {}
    assert (body.get("metadata") or {}).get("uid") == ("child" if is_found else None)


@pytest.mark.parametrize("in_turn", [False, True])
def test_a_write_that_waits_for_its_turn_still_does_when_it_is_bound(in_turn: bool) -> None:
    action = Apply(DEPLOYMENTS, {"metadata": {"name": "faq-train", "namespace": "team"}}, waits_for_turn=in_turn)
    bound = ownership.bind_to_uid(action, [child(DEPLOYMENTS)])
    assert isinstance(bound, Apply)
    assert (bound.waits_for_turn, bound.body["metadata"]["uid"]) == (in_turn, "child")


def test_a_pod_of_a_list_has_no_kind_and_is_found_all_the_same() -> None:
    found = {"metadata": {"name": "p", "uid": "pod"}}
    bound = ownership.bind_to_uid(Patch(PODS, "p", {"metadata": {"labels": {}}}), [found])
    assert isinstance(bound, Patch)
    assert bound.patch == {"metadata": {"labels": {}, "uid": "pod"}}


@pytest.mark.parametrize("action", [Create(JOBS, child()), Delete(JOBS, "faq-train", "child")])
def test_a_creation_or_deletion_needs_no_binding(action: Action) -> None:
    assert ownership.bind_to_uid(action, [child(uid="else")]) is action
