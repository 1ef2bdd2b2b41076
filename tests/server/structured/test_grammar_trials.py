"""Trials of grammars: which lane they run in, and what the end of a trial's process says. No model and no server."""

import asyncio
import json
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable
from itertools import count

import pytest
from hone_server.protocol.errors import ApiError
from hone_server.structured import trial_pool
from hone_server.structured.trial_pool import GrammarTrials, TrialLane, Verdict, raise_for_verdict

GRAMMAR = [{"json_schema": {"type": "boolean"}}]
FROM_OUTSIDE = [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
OF_THE_SCHEMA = [signal.SIGXCPU, signal.SIGABRT, signal.SIGSEGV, signal.SIGILL, signal.SIGFPE, signal.SIGBUS]


def judge(monkeypatch: pytest.MonkeyPatch, lines: list[str], status: int | None) -> tuple[Verdict, GrammarTrials]:
    tried = GrammarTrials({})
    monkeypatch.setattr(tried, "_ask_helper", lambda request: (lines, status))
    return asyncio.run(tried.get_verdict(GRAMMAR, [None], "client")), tried


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
    assert asyncio.run(tried.get_verdict(GRAMMAR, [None], "client")) == Verdict()


@pytest.mark.parametrize("status", [*(-number for number in OF_THE_SCHEMA), 1, 101])
def test_a_trial_that_its_schema_ended_is_refused_for_ever(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    verdict, tried = judge(monkeypatch, [], status)
    with pytest.raises(ApiError, match="simplify it") as refused:
        raise_for_verdict(verdict, "response_format")
    assert refused.value.status == 400
    monkeypatch.setattr(tried, "_ask_helper", lambda request: pytest.fail("it is known"))
    assert asyncio.run(tried.get_verdict(GRAMMAR, [None], "client")) == verdict


@pytest.fixture
def lanes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the test lanes of its own."""
    monkeypatch.setattr(trial_pool, "_quick_lane", TrialLane(trial_pool.MAX_QUICK_TRIALS, is_quick=True))
    monkeypatch.setattr(trial_pool, "_slow_lane", TrialLane(trial_pool.MAX_SLOW_TRIALS, is_quick=False))


class FakeHelper:
    """Compiles schemas of the form {"const": name}. Slow ones end in the slow lane when `may_end` is set."""

    def __init__(self) -> None:
        self.begun = list[tuple[str, bool]]()
        self.may_end = threading.Event()

    def try_request(self, request: str) -> tuple[list[str], int]:
        asked = json.loads(request)
        name, is_quick = asked["grammars"][0]["json_schema"]["const"], asked["is_quick"]
        self.begun.append((name, is_quick))
        if not name.startswith("slow"):
            return ['{"grammar": null}'], 0
        if is_quick:
            return [], -signal.SIGPROF
        self.may_end.wait(60)
        return [], -signal.SIGXCPU

    def make_trials(self, monkeypatch: pytest.MonkeyPatch) -> GrammarTrials:
        trials = GrammarTrials({})
        monkeypatch.setattr(trials, "_ask_helper", self.try_request)
        return trials

    def list_lane(self, *, is_quick: bool) -> list[str]:
        return [name for name, was_quick in self.begun if was_quick == is_quick]


async def wait_until(is_met: Callable[[], object]) -> None:
    while not is_met():  # noqa: ASYNC110 threads make it true
        await asyncio.sleep(0.001)


async def ask_for(trials: GrammarTrials, name: str, client: str = "client") -> Verdict:
    return await trials.get_verdict([{"json_schema": {"const": name}}], [None], client)


@pytest.mark.usefixtures("lanes")
@pytest.mark.parametrize("client", ["another", "slow 0"])
def test_150_slow_schemas_of_several_clients_do_not_delay_a_quick_one(
    monkeypatch: pytest.MonkeyPatch, client: str
) -> None:
    helper, slow_clients, slow_per_client = FakeHelper(), 5, 30

    async def ask() -> tuple[int, int]:
        trials, is_answered, busy = helper.make_trials(monkeypatch), asyncio.Event(), Counter[str]()
        numbers = count()

        async def send_slow_schemas(own: str) -> None:
            while not is_answered.is_set():
                verdict = await ask_for(trials, f"slow schema {next(numbers)}", own)
                busy[own] += verdict.is_busy

        senders = [
            asyncio.create_task(send_slow_schemas(f"slow {number % slow_clients}"))
            for number in range(slow_clients * slow_per_client)
        ]
        await wait_until(lambda: len(+busy) == slow_clients)
        before = len(helper.list_lane(is_quick=True))
        verdict = await ask_for(trials, "quick", client)
        assert verdict == Verdict()
        place = helper.list_lane(is_quick=True).index("quick")
        is_answered.set()
        helper.may_end.set()
        await asyncio.gather(*senders)
        return before, place

    before, place = asyncio.run(ask())
    # A client waits for one trial of each other client, and for its own trials that came earlier.
    own = slow_per_client if client == "slow 0" else 1
    assert place - before <= own * slow_clients + trial_pool.MAX_QUICK_TRIALS


@pytest.mark.usefixtures("lanes")
def test_a_schema_that_was_slow_once_is_no_longer_tried_in_the_quick_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    helper = FakeHelper()

    async def ask() -> list[Verdict]:
        trials = helper.make_trials(monkeypatch)
        first = asyncio.create_task(ask_for(trials, "slow 0"))
        await wait_until(lambda: helper.list_lane(is_quick=False))
        left = asyncio.create_task(ask_for(trials, "slow 1"))
        await wait_until(lambda: trial_pool._slow_lane.turns.count_waiting("client"))
        left.cancel()
        await asyncio.wait([left])
        again = asyncio.create_task(ask_for(trials, "slow 1"))
        helper.may_end.set()
        return [await first, await again, await ask_for(trials, "slow 0")]

    first, again, cached = asyncio.run(ask())
    assert (first, again) == (cached, cached)
    assert cached.is_slow
    assert "simplify it" in str(cached.error)
    assert helper.begun == [("slow 0", True), ("slow 0", False), ("slow 1", True), ("slow 1", False)]


@pytest.mark.usefixtures("lanes")
def test_a_client_with_too_many_slow_schemas_is_refused_at_once_and_others_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    helper, limit = FakeHelper(), trial_pool.MAX_WAITING_SLOW_TRIALS

    async def ask() -> None:
        trials = helper.make_trials(monkeypatch)
        running = [asyncio.create_task(ask_for(trials, f"slow {number}")) for number in range(limit + 1)]
        await wait_until(lambda: trial_pool._slow_lane.turns.count_waiting("client") == limit)
        for _ in range(2):
            with pytest.raises(ApiError, match="of this client wait already; try again") as refused:
                raise_for_verdict(await ask_for(trials, "slow and one too many"), "response_format")
            assert refused.value.status == 503
        other = asyncio.create_task(ask_for(trials, "slow and one too many", "another"))
        await wait_until(lambda: trial_pool._slow_lane.turns.count_waiting("another"))
        helper.may_end.set()
        await asyncio.gather(*running, other)

    asyncio.run(ask())
    in_slow_lane = helper.list_lane(is_quick=False)
    assert helper.list_lane(is_quick=True).count("slow and one too many") == 1
    assert in_slow_lane.index("slow and one too many") <= 2


@pytest.mark.usefixtures("lanes")
def test_trials_that_nobody_waits_for_are_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, may_end = list[str](), threading.Event()
    at_once = trial_pool.MAX_QUICK_TRIALS

    def run(request: str) -> tuple[list[str], int]:
        begun.append(json.loads(request)["grammars"][0]["json_schema"]["const"])
        may_end.wait(60)
        return ['{"grammar": null}'], 0

    async def ask() -> None:
        trials = GrammarTrials({})
        monkeypatch.setattr(trials, "_ask_helper", run)

        def start(name: str, client: str = "client") -> "asyncio.Task[Verdict]":
            return asyncio.create_task(ask_for(trials, name, client))

        running = [start(f"running {number}") for number in range(at_once)]
        left = [start(f"left {number}") for number in range(20)]
        same = [start("same", client) for client in ("client", "another", "another")]
        new = start("new")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        for one in [*left, *same[:2]]:
            one.cancel()
        await asyncio.gather(*left, *same[:2], return_exceptions=True)
        again = start("left 0")
        may_end.set()
        await asyncio.gather(*running, same[2], new, again)

    asyncio.run(ask())
    assert sorted(begun) == sorted([*(f"running {number}" for number in range(at_once)), "same", "new", "left 0"])


@pytest.mark.usefixtures("lanes")
def test_a_running_trial_is_joined_and_its_verdict_is_cached_even_if_all_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    helper = FakeHelper()

    async def ask() -> None:
        trials = helper.make_trials(monkeypatch)
        first = asyncio.create_task(ask_for(trials, "slow 0"))
        await wait_until(lambda: helper.list_lane(is_quick=False))
        first.cancel()
        await asyncio.wait([first])
        joined = asyncio.create_task(ask_for(trials, "slow 0", "another"))
        await asyncio.sleep(0)
        joined.cancel()
        await asyncio.wait([joined])
        helper.may_end.set()
        await asyncio.gather(*trials._tasks.values())
        assert (await ask_for(trials, "slow 0")).is_slow
        assert (trials._tasks, trials._trials) == ({}, {})

    asyncio.run(ask())
    assert helper.begun == [("slow 0", True), ("slow 0", False)]


def test_the_vocabulary_waits_for_no_reader() -> None:
    content = os.urandom(4 << 20)  # a pipe holds 64 KiB
    with trial_pool._make_file(content) as file:
        assert file.read() == content
