"""The work queue: each key once, never with two workers, urgent keys first, failures with backoff."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from hone_operator.kube.workqueue import LONGEST_RETRY_SECONDS, Scope, WorkQueue
from hone_operator.objects.resources import FINETUNEJOBS, Key
from hone_operator.observability.metrics import Metrics

A, B, C = (Key(FINETUNEJOBS, "team", name) for name in "abc")


def in_loop(test: Callable[[WorkQueue], Awaitable[None]]) -> None:
    async def run() -> None:
        await asyncio.wait_for(test(WorkQueue(Metrics())), 10)

    asyncio.run(run())


async def is_empty(queue: WorkQueue) -> bool:
    try:
        await asyncio.wait_for(queue.get(), 0.05)
    except TimeoutError:
        return True
    return False


def test_a_key_is_queued_once_and_urgent_ones_come_first() -> None:
    async def check(queue: WorkQueue) -> None:
        for key in (A, B, A):
            queue.add(key)
        queue.add(C, urgent=True)
        assert [await queue.get() for _ in range(3)] == [C, A, B]
        assert await is_empty(queue)

    in_loop(check)


def test_a_key_is_never_with_two_workers() -> None:
    async def check(queue: WorkQueue) -> None:
        queue.add(A)
        await queue.get()
        queue.add(A)
        queue.add(A)
        assert await is_empty(queue)
        queue.done(A)
        assert await queue.get() == A
        queue.done(A)
        assert await is_empty(queue)

    in_loop(check)


def test_a_key_gets_a_full_pass_unless_everyone_asked_for_progress_only() -> None:
    async def check(queue: WorkQueue) -> None:
        queue.add(A, scope=Scope.PROGRESS)
        queue.add(B, scope=Scope.PROGRESS)
        queue.add(B)
        queue.add(C)
        queue.add(C, scope=Scope.PROGRESS)
        assert [queue.needs_full(await queue.get()) for _ in range(3)] == [False, True, True]
        queue.add(A, scope=Scope.PROGRESS)  # while workers have all of them
        queue.add(B)
        queue.add(B, scope=Scope.PROGRESS)
        assert not queue.needs_full(A)
        for key in (A, B, C):
            queue.done(key)
        assert [queue.needs_full(await queue.get()) for _ in range(2)] == [False, True]
        queue.done(A)
        queue.add(A)
        assert queue.needs_full(await queue.get())

    in_loop(check)


def test_of_several_delays_the_shortest_counts() -> None:
    async def check(queue: WorkQueue) -> None:
        queue.add_after(A, 60)
        queue.add_after(A, 0.01)
        queue.add_after(A, 60)
        assert await queue.get() == A
        queue.done(A)
        assert await is_empty(queue)

    in_loop(check)


def test_retries_become_slower_up_to_a_limit_and_are_reset_by_success() -> None:
    async def check(queue: WorkQueue) -> None:
        assert [queue.retry(A) for _ in range(3)] == pytest.approx([0.5, 1, 2])
        assert [queue.retry(A) for _ in range(50)][-1] == LONGEST_RETRY_SECONDS
        queue.reset_backoff(A)
        assert queue.retry(A) == pytest.approx(0.5)

    in_loop(check)


def test_a_forgotten_key_is_not_queued_again() -> None:
    async def check(queue: WorkQueue) -> None:
        queue.add_after(A, 0.01)
        queue.forget(A)
        assert await is_empty(queue)

    in_loop(check)


def test_a_pause_that_the_server_asks_for_is_not_cut_short_by_an_earlier_timer() -> None:
    async def check(queue: WorkQueue) -> None:
        queue.add_after(A, 0.01)
        assert queue.retry(A, 60) == 60
        assert await is_empty(queue)

    in_loop(check)
