"""Who has the next turn: clients take turns, however many requests they send, and while others come and leave."""

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest
from hone_server.structured.fair_turns import FairQueue, FairTurns
from hypothesis import given
from hypothesis import strategies as st

CLIENTS = "abcde"
ITEMS = st.integers(0, 20)
# ("pop",), or ("add" or "discard", item, client), or ("remove", item).
STEPS = st.lists(
    st.one_of(
        st.just(("pop",)),
        st.tuples(st.sampled_from(["add", "discard"]), ITEMS, st.sampled_from(CLIENTS)),
        st.tuples(st.just("remove"), ITEMS),
    ),
    max_size=80,
)


@given(STEPS)
def test_the_queue_loses_nothing_and_keeps_the_order_of_each_client(steps: list[tuple[str | int, ...]]) -> None:
    queue = FairQueue[int]()
    expected = {client: list[int]() for client in CLIENTS}
    for name, *arguments in steps:
        popped = getattr(queue, str(name))(*arguments)
        if name == "add":
            item, client = arguments
            if item not in expected[str(client)]:
                expected[str(client)].append(int(item))
        elif name == "discard":
            item, client = arguments
            expected[str(client)] = [one for one in expected[str(client)] if one != item]
        else:
            if name == "pop":
                assert (popped is None) == (not any(expected.values()))
                assert popped is None or popped in [items[0] for items in expected.values() if items]
            gone = popped if name == "pop" else arguments[0]
            expected = {client: [one for one in items if one != gone] for client, items in expected.items()}
        assert {client: queue.count_items(client) for client in CLIENTS} == {
            client: len(items) for client, items in expected.items()
        }
        assert len(queue) == len({item for items in expected.values() for item in items})


@given(
    st.lists(st.sampled_from(CLIENTS), max_size=60),
    st.sampled_from(CLIENTS),
    st.lists(st.lists(st.sampled_from(CLIENTS + "xyz"), max_size=4), max_size=400),
)
def test_an_item_waits_for_the_earlier_ones_of_its_client_and_one_each_of_the_others(
    earlier: list[str], client: str, later: list[list[str]]
) -> None:
    queue = FairQueue[object]()
    for one in earlier:
        queue.add(object(), one)
    rounds, others = queue.count_items(client) + 1, len({*earlier} - {client})
    item, popped = object(), 0
    queue.add(item, client)
    newcomers = set[str]()
    arriving = iter(later)
    while queue.pop() is not item:
        popped += 1
        for one in next(arriving, []):  # those who keep coming
            queue.add(object(), one)
            newcomers.add(one)
    assert popped < rounds * (1 + len({*earlier, *newcomers} | {client}))
    if rounds == 1:
        assert popped <= others


@pytest.mark.parametrize("seed", range(20))
def test_turns_are_never_lost_and_never_more_than_there_are(seed: int) -> None:
    chance = random.Random(seed)

    async def ask() -> None:
        turns, running, most = FairTurns[int](2), 0, 0

        async def work() -> None:
            nonlocal running, most
            running += 1
            most = max(most, running)
            try:
                for _ in range(chance.randrange(4)):
                    await asyncio.sleep(0)
            finally:
                running -= 1

        tasks = list[asyncio.Task[None]]()
        for number in range(60):
            client = chance.choice(CLIENTS)
            run = turns.run_shielded(number, client, work) if number % 2 else turns.run_in_turn(number, [client], work)
            tasks.append(asyncio.create_task(run))
            for _ in range(chance.randrange(3)):
                await asyncio.sleep(0)
            some, other = chance.randrange(number + 1), chance.choice(CLIENTS)
            turns.join(some, other)
            if chance.random() < 0.4:
                for one in CLIENTS:
                    turns.leave(some, one)
            elif chance.random() < 0.2:
                tasks[some].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for _ in range(20):  # work whose caller has been cancelled
            await asyncio.sleep(0)
        assert (most, turns._free_count, len(turns._queue), turns._turns) == (2, 2, 0, {})

    asyncio.run(ask())


def test_clients_take_turns_and_one_that_waits_for_the_work_of_another_counts_as_well() -> None:
    order = list[str]()

    async def ask() -> None:
        turns = FairTurns[str](1)

        def record(name: str) -> Callable[[], Awaitable[None]]:
            async def work() -> None:
                order.append(name)
                await asyncio.sleep(0)

            return work

        names = ["a0", "a1", "a2", "a3", "b0", "b1"]
        running = [asyncio.create_task(turns.run_in_turn(name, [name[0]], record(name))) for name in names]
        await asyncio.sleep(0)
        turns.join("a3", "c")
        await asyncio.gather(*running)

    asyncio.run(ask())
    assert order == ["a0", "a1", "b0", "a3", "a2", "b1"]
