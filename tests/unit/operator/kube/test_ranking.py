"""The key with the most is found as a plain search finds it, without a look at all keys."""

from hone_operator.kube.pod_cache_limit import Place, Room
from hone_operator.kube.ranking import Ranking
from hypothesis import given
from hypothesis import strategies as st


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(-30, 30))))
def test_the_largest_is_that_of_a_plain_search(steps: list[tuple[int, int]]) -> None:
    ranking, plain = Ranking[int](), dict[int, int]()
    for key, amount in steps:
        ranking.add(key, amount)
        plain[key] = max(plain.get(key, 0) + amount, 0)
        assert all(ranking.get_amount(each) == total for each, total in plain.items())
        assert bool(ranking) == any(plain.values())
        if ranking:
            assert plain[ranking.find_largest()] == max(plain.values())
        assert len(ranking._heap) <= 2 * len(ranking._amounts) + 16


class Name(str):
    """A name that counts how often any of its kind is looked up."""

    looked_up = 0

    def __hash__(self) -> int:
        Name.looked_up += 1
        return super().__hash__()


def test_a_pod_that_finds_no_room_costs_the_same_among_any_number_of_owners() -> None:
    def looks(count: int) -> float:
        room = Room(10 * count)
        for number in range(count):
            room.take(Place("flood", f"p{number}"), Name(f"o{number}"), 10)
        Name.looked_up = 0
        for number in range(40):
            assert room.take(Place("team", f"p{number}"), Name("faq"), 10) is not None
        return Name.looked_up / 40

    assert looks(5000) < 2 * looks(100)
