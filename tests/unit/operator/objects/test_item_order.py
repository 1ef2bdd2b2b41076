"""Lists in a child are current with Hone's items in Hone's order; others may add items."""

from typing import Any

from hone_operator.objects.drift import contains_fields
from hypothesis import given
from hypothesis import strategies as st

NAMES = st.lists(st.sampled_from("abcdef"), unique=True)


def items(names: list[str], **more: Any) -> list[dict[str, Any]]:
    return [{"name": name, **more} for name in names]


@given(NAMES, NAMES)
def test_a_list_is_current_when_hones_items_are_there_in_order(observed: list[str], desired: list[str]) -> None:
    found = contains_fields({"env": items(observed, value="1")}, {"env": items(desired)})
    assert found == ([name for name in observed if name in desired] == desired)


def test_a_desired_item_that_occurs_twice_may_be_there_once() -> None:
    assert contains_fields(items(["a", "b"]), items(["a", "a", "b"]))
