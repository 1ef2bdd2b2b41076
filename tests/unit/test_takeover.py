"""Which fields of a child Hone takes over, by its managedFields."""

from typing import Any

from hone_operator.resources import Object
from hone_operator.takeover import take_over, take_over_spec
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


def test_what_hone_wrote_otherwise_becomes_applied() -> None:
    applied, written = entry("hone", "Apply", {"f:spec": {"f:a": {}}}), entry("hone", "Update", {"f:spec": {"f:b": {}}})
    theirs = entry("kubectl", "Update", {"f:spec": {"f:c": {}}})
    status = entry("hone", "Update", {"f:status": {}}, "status")
    kept = entries_of(take_over(child(applied, written, theirs, status)))
    assert kept[:2] == [theirs, status]
    assert kept[2]["fieldsV1"] == {"f:spec": {"f:a": {}, "f:b": {}}}
    assert (kept[2]["manager"], kept[2]["operation"]) == ("hone", "Apply")


def test_nothing_is_taken_over_of_a_child_that_hone_applies() -> None:
    applied, theirs = entry("hone", "Apply", {"f:spec": {}}), entry("kubectl", "Update", {"f:spec": {}})
    assert take_over(child(applied, theirs)) is None
    assert take_over(child()) is None


def test_all_of_a_restored_child_is_taken_over() -> None:
    status = entry("kube-controller-manager", "Update", {"f:status": {}}, "status")
    found = child(
        entry("velero-server", "Update", {"f:spec": {"f:a": {}}}), entry("kubectl", "Apply", {"f:data": {}}), status
    )
    kept = entries_of(take_over(found))
    assert kept[0] == status
    assert kept[1]["fieldsV1"] == {"f:spec": {"f:a": {}}, "f:data": {}}


@given(FIELDS, FIELDS)
def test_what_is_taken_and_what_is_left_are_all_that_there_was(theirs: Object, ours: Object) -> None:
    found = child(entry("hone", "Apply", ours), entry("kubectl", "Update", theirs))
    patch = take_over_spec(found)
    if patch is None:
        assert not [path for path in paths(theirs) if path[0] in ("f:spec", "f:data")]
        return
    *left, applied = entries_of(patch)
    all_left = set().union(*(paths(each["fieldsV1"]) for each in left))
    for path in paths(theirs):
        is_left = path[0] not in ("f:spec", "f:data") or path[:3] == ("f:spec", "f:template", "f:metadata")
        assert is_left == (path in all_left), path
    taken = paths(applied["fieldsV1"])
    for path in paths(ours) | (paths(theirs) - all_left):
        assert any(each[: len(path)] == path for each in taken), path
