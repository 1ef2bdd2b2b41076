"""Work begins, or waits, depending on the lists of each namespace."""

import itertools

import pytest
from hone_api.reasons import CHILD_REFUSED
from hone_operator.objects.resources import (
    BUDGETS,
    FINETUNEJOBS,
    INFERENCESERVICES,
    JOBS,
    OWNERS,
    PODS,
    SERVICES,
    WATCHED,
    Key,
    Resource,
)
from hone_operator.reconcile.coverage import NEEDED_KINDS, Coverage
from hypothesis import given
from hypothesis import strategies as st

FORBIDDEN = "403: forbidden"
PARTS = list(itertools.product(WATCHED, ("a", "b")))


def listed(*but: tuple[Resource, str], namespaces: list[str]) -> Coverage:
    """Return a coverage in which everything but these has been listed."""
    coverage = Coverage(namespaces)
    for resource, namespace in itertools.product(WATCHED, namespaces or [""]):
        if (resource, namespace) not in but:
            coverage.mark_listed(resource, namespace)
    return coverage


@pytest.mark.parametrize("namespaces", [[], ["a"], ["a", "b"]])
def test_work_begins_when_every_list_has_come(namespaces: list[str]) -> None:
    parts = list(itertools.product(WATCHED, namespaces or [""]))
    coverage = Coverage(namespaces)
    for part in parts:
        assert not coverage.is_sufficient
        assert coverage.mark_listed(*part)
        assert not coverage.mark_listed(*part)
    assert coverage.is_sufficient
    assert coverage.describe_refused() is None
    assert all(coverage.find_missing_list(Key(owner, "a", "x")) is None for owner in OWNERS)


def test_a_missing_namespace_does_not_delay_others() -> None:
    coverage = listed(*((resource, "b") for resource in WATCHED), namespaces=["a", "b"])
    assert not coverage.is_sufficient
    for resource in WATCHED:
        coverage.mark_refused(resource, "b", FORBIDDEN)
    assert coverage.is_sufficient
    assert coverage.find_missing_list(Key(FINETUNEJOBS, "a", "x")) is None
    lacking = coverage.find_missing_list(Key(FINETUNEJOBS, "b", "x"))
    assert lacking is not None
    assert not lacking.is_owner_listed  # the object itself is not listed


def test_work_does_not_begin_before_any_object_is_listed() -> None:
    coverage = Coverage(["a"])
    for resource in WATCHED:
        coverage.mark_refused(resource, "a", FORBIDDEN)
    assert not coverage.is_sufficient


@pytest.mark.parametrize("owner", OWNERS)
@pytest.mark.parametrize("resource", WATCHED)
@pytest.mark.parametrize("namespaces", [[], ["a"]])
def test_an_object_waits_for_the_kinds_that_it_needs(
    owner: Resource, resource: Resource, namespaces: list[str]
) -> None:
    where = "a" if namespaces else ""
    coverage = listed((resource, where), namespaces=namespaces)
    key = Key(owner, "a", "x")
    needs = resource in NEEDED_KINDS[owner]
    early = coverage.find_missing_list(key)
    assert (early is not None) is needs
    assert early is None or not early.is_owner_listed
    coverage.mark_refused(resource, where, FORBIDDEN)
    late = coverage.find_missing_list(key)
    assert (late is not None) is needs
    if late is not None:
        assert late.error.reason == CHILD_REFUSED
        assert resource.plural in late.error.message
        assert FORBIDDEN in late.error.message
        assert late.is_owner_listed is (resource != owner)
    assert coverage.list_refused() == [(resource.plural, where, FORBIDDEN)]
    assert resource.plural in (coverage.describe_refused() or "")
    assert coverage.mark_listed(resource, where)
    assert coverage.find_missing_list(key) is None
    assert coverage.describe_refused() is None


def test_rights_that_are_taken_away_later_stop_what_needs_them() -> None:
    coverage = listed(namespaces=["a"])
    coverage.mark_refused(JOBS, "a", FORBIDDEN)
    assert coverage.find_missing_list(Key(FINETUNEJOBS, "a", "x")) is not None
    assert coverage.find_missing_list(Key(INFERENCESERVICES, "a", "x")) is None


def test_every_kind_that_an_object_needs_is_watched() -> None:
    assert {resource for needed in NEEDED_KINDS.values() for resource in needed} <= set(WATCHED)
    assert all(owner in needed and PODS in needed for owner, needed in NEEDED_KINDS.items())
    assert SERVICES in NEEDED_KINDS[INFERENCESERVICES]
    assert BUDGETS not in NEEDED_KINDS[INFERENCESERVICES]


@given(st.lists(st.tuples(st.sampled_from(PARTS), st.booleans()), max_size=60))
def test_only_the_last_answer_of_each_list_counts(answers: list[tuple[tuple[Resource, str], bool]]) -> None:
    coverage = Coverage(["a", "b"])
    for part, came in answers:
        if came:
            coverage.mark_listed(*part)
        else:
            coverage.mark_refused(*part, FORBIDDEN)
    last = dict(answers)
    refused = {(resource.plural, namespace) for (resource, namespace), came in last.items() if not came}
    assert {(plural, namespace) for plural, namespace, _ in coverage.list_refused()} == refused
    seen = any(came for (resource, _), came in last.items() if resource in OWNERS)
    assert coverage.is_sufficient is (seen and len(last) == len(PARTS))
    for owner, namespace in itertools.product(OWNERS, ("a", "b")):
        lacks = any(not last.get((resource, namespace)) for resource in NEEDED_KINDS[owner])
        assert (coverage.find_missing_list(Key(owner, namespace, "x")) is not None) is lacks
