"""Trials of grammars: who has the next turn, and what the end of a trial's process says. No model and no server."""

import asyncio
import json
import os
import random
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hone_server.protocol.errors import ApiError
from hone_server.structured import trial_pool
from hone_server.structured.lifo_semaphore import LifoSemaphore
from hone_server.structured.trial_pool import GrammarTrials, Verdict, raise_for_verdict

GRAMMAR = [{"json_schema": {"type": "boolean"}}]
FROM_OUTSIDE = [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
OF_THE_SCHEMA = [signal.SIGXCPU, signal.SIGABRT, signal.SIGSEGV, signal.SIGILL, signal.SIGFPE, signal.SIGBUS]


def judge(monkeypatch: pytest.MonkeyPatch, lines: list[str], status: int | None) -> tuple[Verdict, GrammarTrials]:
    tried = GrammarTrials({})
    monkeypatch.setattr(tried, "_ask_helper", lambda request: (lines, status))
    return asyncio.run(tried.get_verdict(GRAMMAR, [None])), tried


@pytest.mark.parametrize("status", [*(-number for number in FROM_OUTSIDE), None, -signal.SIGALRM])
@pytest.mark.parametrize("lines", [[], ['{"grammar": null}'], ["0", "1"]])
def test_a_trial_that_was_ended_from_outside_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, status: int | None, lines: list[str]
) -> None:
    verdict, tried = judge(monkeypatch, lines, status)
    with pytest.raises(ApiError, match="try again") as refused:
        raise_for_verdict(verdict, "response_format")
    assert refused.value.status == 503
    monkeypatch.setattr(tried, "_ask_helper", lambda request: (['{"grammar": null}'], 0))
    assert asyncio.run(tried.get_verdict(GRAMMAR, [None])) == Verdict()


@pytest.mark.parametrize("status", [*(-number for number in OF_THE_SCHEMA), 1, 101])
def test_a_trial_that_its_schema_ended_is_refused_for_ever(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    verdict, tried = judge(monkeypatch, [], status)
    with pytest.raises(ApiError, match="simplify it") as refused:
        raise_for_verdict(verdict, "response_format")
    assert refused.value.status == 400
    monkeypatch.setattr(tried, "_ask_helper", lambda request: pytest.fail("it is known"))
    assert asyncio.run(tried.get_verdict(GRAMMAR, [None])) == verdict


def test_trials_that_nobody_waits_for_are_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, may_end = list[str](), threading.Event()

    def run(request: str) -> tuple[list[str], int]:
        begun.append(json.loads(request)["grammars"][0]["json_schema"]["const"])
        may_end.wait(60)
        return ['{"grammar": null}'], 0

    async def ask() -> None:
        tried = GrammarTrials({})
        monkeypatch.setattr(tried, "_ask_helper", run)

        def start(name: str) -> "asyncio.Task[Verdict]":
            return asyncio.create_task(tried.get_verdict([{"json_schema": {"const": name}}], [None]))

        slow = [start(f"slow {number}") for number in range(trial_pool.MAX_TRIALS)]
        left = [start(f"left {number}") for number in range(20)]
        same = [start("same") for _ in range(2)]
        new = start("new")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        for one in [*left, same[0]]:
            one.cancel()
        await asyncio.gather(*left, same[0], return_exceptions=True)
        again = start("left 0")
        may_end.set()
        await asyncio.gather(*slow, same[1], new, again)

    monkeypatch.setattr(trial_pool, "_semaphore", LifoSemaphore(trial_pool.MAX_TRIALS))
    asyncio.run(ask())
    assert sorted(begun) == sorted(
        [*(f"slow {number}" for number in range(trial_pool.MAX_TRIALS)), "same", "new", "left 0"]
    )


@pytest.mark.parametrize("seed", range(20))
def test_turns_are_never_lost_and_never_more_than_there_are(seed: int) -> None:
    chance = random.Random(seed)

    async def ask() -> None:
        turns, running, most = LifoSemaphore(2), 0, 0

        async def work() -> None:
            nonlocal running, most
            running += 1
            most = max(most, running)
            for _ in range(chance.randrange(4)):
                await asyncio.sleep(0)
            running -= 1

        tasks = list[asyncio.Task[Any]]()
        for _ in range(60):
            tasks.append(asyncio.create_task(turns.run_in_turn(work)))
            for _ in range(chance.randrange(3)):
                await asyncio.sleep(0)
            some = chance.choice(tasks)
            if chance.random() < 0.4 and not some.done():
                turns.cancel_waiting(some)
        await asyncio.gather(*tasks, return_exceptions=True)
        assert (most, turns._free_count, len(turns._waiting)) == (2, 2, 0)

    asyncio.run(ask())


def test_the_last_who_came_has_the_next_turn() -> None:
    order = list[int]()

    async def ask() -> None:
        turns = LifoSemaphore(1)

        async def work(number: int) -> None:
            order.append(number)
            await asyncio.sleep(0)

        def asked(number: int) -> Callable[[], Any]:
            return lambda: work(number)

        await asyncio.gather(*(turns.run_in_turn(asked(number)) for number in range(4)))

    asyncio.run(ask())
    assert order == [0, 3, 2, 1]


def test_the_vocabulary_waits_for_no_reader() -> None:
    content = os.urandom(4 << 20)  # a pipe holds 64 KiB
    with trial_pool._make_file(content) as file:
        assert file.read() == content
