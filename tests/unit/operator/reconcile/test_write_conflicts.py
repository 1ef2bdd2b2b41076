"""Repairs of a child that somebody else changes each time: the first few are immediate, then they become rare."""

import pytest
from hone_operator.objects.resources import INFERENCESERVICES, Key, Object
from hone_operator.reconcile.write_conflicts import (
    FIRST_PAUSE_SECONDS,
    FREE_WRITES,
    MAX_PAUSE_SECONDS,
    WINDOW_SECONDS,
    WriteContests,
    find_contender,
)
from hypothesis import given
from hypothesis import strategies as st

KEY = Key(INFERENCESERVICES, "team", "chat")
OTHER = Key(INFERENCESERVICES, "team", "other")
CHILD = ("Deployment", "chat")


def fought(writes: int, *, at: float = 0.0) -> WriteContests:
    contests = WriteContests()
    contests.start_spec(KEY, ("u", 1))
    for _ in range(writes):
        contests.count_write(KEY, CHILD, at)
    return contests


def test_the_first_repairs_are_not_delayed() -> None:
    contests = WriteContests()
    assert not any(contests.count_write(KEY, CHILD, 0.0) for _ in range(FREE_WRITES))
    assert not contests.is_paused(KEY, CHILD, 0.0)
    assert contests.list_contested(KEY, 0.0) == []
    assert contests.get_seconds_left(KEY, 0.0) is None


def test_one_repair_too_many_delays_only_that_child() -> None:
    contests = fought(FREE_WRITES + 1)
    assert contests.is_paused(KEY, CHILD, 0.0)
    assert [child for child, _ in contests.list_contested(KEY, 0.0)] == [CHILD]
    for key, child in ((KEY, ("Service", "chat")), (OTHER, CHILD)):
        assert not contests.is_paused(key, child, 0.0)
    assert contests.list_contested(OTHER, 0.0) == []


def test_the_pause_doubles_up_to_its_limit_and_ends() -> None:
    contests, now, pauses = fought(FREE_WRITES), 0.0, []
    for _ in range(6):
        assert contests.count_write(KEY, CHILD, now)
        left = contests.get_seconds_left(KEY, now)
        assert left is not None
        assert contests.is_paused(KEY, CHILD, now + left - 0.1)
        assert not contests.is_paused(KEY, CHILD, now + left)
        pauses.append(left)
        now += left
    assert pauses == [FIRST_PAUSE_SECONDS * 2**step for step in range(6)]
    contests = fought(40)
    assert contests.get_seconds_left(KEY, 0.0) == MAX_PAUSE_SECONDS


def test_the_pause_stays_at_its_limit_while_the_other_writer_continues() -> None:
    contests, now = fought(FREE_WRITES), 0.0
    for repair in range(2000):
        assert contests.count_write(KEY, CHILD, now)
        left = contests.get_seconds_left(KEY, now)
        assert left is not None
        assert repair < 6 or left == MAX_PAUSE_SECONDS
        now += left


def test_after_a_quiet_time_repairs_are_not_delayed() -> None:
    contests = fought(FREE_WRITES + 4)
    later = WINDOW_SECONDS + 1
    assert not any(contests.count_write(KEY, CHILD, later) for _ in range(FREE_WRITES - 1))
    assert not contests.is_paused(KEY, CHILD, later)


@pytest.mark.parametrize("other", [("u", 2), ("another", 1)])
def test_another_spec_or_another_object_of_the_name_resets_the_count(other: tuple[str, int]) -> None:
    contests = fought(FREE_WRITES + 3)
    contests.start_spec(KEY, ("u", 1))
    assert contests.is_paused(KEY, CHILD, 0.0)
    contests.start_spec(KEY, other)
    assert not contests.is_paused(KEY, CHILD, 0.0)
    assert contests.list_contested(KEY, 0.0) == []


def test_a_contest_ends_when_its_writes_are_old() -> None:
    contests = fought(FREE_WRITES + 1)
    assert contests.list_contested(KEY, WINDOW_SECONDS + 1) == []
    assert contests.get_seconds_left(KEY, WINDOW_SECONDS + 1) is None


def test_the_other_writer_is_looked_up_before_the_write_that_delays_and_is_remembered() -> None:
    contests = fought(FREE_WRITES - 1)
    assert not contests.is_suspect(KEY, CHILD)
    contests.count_write(KEY, CHILD, 0.0)
    assert contests.is_suspect(KEY, CHILD)
    contests.set_manager(KEY, CHILD, "argocd")
    contests.set_manager(KEY, CHILD, None)
    contests.count_write(KEY, CHILD, 0.0)
    [(_, contest)] = contests.list_contested(KEY, 0.0)
    assert contest.manager == "argocd"


def test_nothing_is_remembered_of_an_object_that_is_gone() -> None:
    contests = fought(FREE_WRITES + 1)
    contests.forget(KEY)
    contests.forget(OTHER)
    assert not contests.is_paused(KEY, CHILD, 0.0)
    assert not contests.is_suspect(KEY, CHILD)


@given(st.lists(st.floats(0.1, 120.0), max_size=300))
def test_writers_that_never_stop_make_few_writes_in_any_window(steps: list[float]) -> None:
    contests, now, writes = WriteContests(), 0.0, list[float]()
    for step in steps:
        now += step
        if not contests.is_paused(KEY, CHILD, now):
            contests.count_write(KEY, CHILD, now)
            writes.append(now)
    for moment in writes:
        assert sum(moment <= each < moment + WINDOW_SECONDS for each in writes) <= 2 * FREE_WRITES + 8


def managed(manager: str, time: str | None, subresource: str = "") -> Object:
    return (
        {"manager": manager} | ({"time": time} if time else {}) | ({"subresource": subresource} if subresource else {})
    )


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (None, None),
        ([], None),
        ([managed("hone", "2026-03-01T12:00:00Z")], None),
        ([managed("kubelet", "2026-03-01T12:00:00Z", "status")], None),
        ([managed("argocd", None)], "argocd"),
        ([managed("kubectl-edit", "2026-03-01T12:00:00Z"), managed("argocd", "2026-03-01T12:00:01Z")], "argocd"),
        ([managed("argocd", "2026-03-01T12:00:00Z"), managed("hone", "2026-03-01T13:00:00Z")], "argocd"),
        ([{"time": "2026-03-01T12:00:00Z"}], None),
    ],
)
def test_the_newest_other_manager_of_more_than_the_status_is_named(
    fields: list[Object] | None, expected: str | None
) -> None:
    said = expected and f"{expected!r} (its field manager)"
    assert find_contender({"metadata": {"managedFields": fields}}) == said


def test_another_installation_of_hone_is_named_by_its_lease() -> None:
    found: Object = {"metadata": {"annotations": {"hone.dev/operator": "other/hone-operator"}, "managedFields": []}}
    said = find_contender(found, "hone-system/hone-operator")
    assert said == "another Hone operator, whose Lease is other/hone-operator"
    assert find_contender(found, "other/hone-operator") is None
    assert find_contender(found) is None


def test_of_a_child_that_is_gone_no_manager_is_named() -> None:
    assert find_contender(None) is None
