"""A request's time counts from the moment it is received, and its bytes count until it is answered."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hone_server.http import routes
from hone_server.protocol import bodies
from hone_server.protocol.bounds import MAX_BODY_BYTES
from inprocess import Lane, Service
from prometheus_client.parser import text_string_to_metric_families
from transformers import AutoTokenizer

SMALL = {"model": "m", "prompt": "hello", "max_tokens": 1}
SLOW_SECONDS = 0.3


@pytest.fixture
def service(base_folder: Path) -> Any:
    return Service(AutoTokenizer.from_pretrained(base_folder))


def client(app: Any) -> Any:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://engine", timeout=60)


class Timed(Lane):
    """Notes when it made each token."""

    async def generate(self, *arguments: Any, **options: Any) -> AsyncIterator[Any]:
        async for tokens in super().generate(*arguments, **options):
            tokens.token_times.extend([time.perf_counter()] * len(tokens.token_ids))
            yield tokens


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("slow", ["parse_body", "plan_completion_tasks", "add_guides"])
def test_the_time_to_the_first_token_includes_all_work_before_it(
    service: Any, monkeypatch: pytest.MonkeyPatch, slow: str, stream: bool
) -> None:
    owner = bodies if slow == "parse_body" else routes
    original = getattr(owner, slow)

    def work(*arguments: Any, **options: Any) -> Any:
        time.sleep(SLOW_SECONDS)
        return original(*arguments, **options)

    monkeypatch.setattr(owner, slow, work)
    service.only.handle.__class__ = Timed

    async def run() -> Any:
        app = routes.make_app(service, max_waiting=256)
        async with client(app) as asking:
            assert (await asking.post("/v1/completions", json=SMALL | {"stream": stream})).status_code == 200
            return (await asking.get("/metrics")).text

    samples = {s.name: s.value for one in text_string_to_metric_families(asyncio.run(run())) for s in one.samples}
    for name in ("time_to_first_token", "e2e_request_latency"):
        assert samples[f"hone:{name}_seconds_count"] == 1
        assert samples[f"hone:{name}_seconds_sum"] >= SLOW_SECONDS


@pytest.mark.parametrize("waits_in", ["parse_body", "plan_completion_tasks"])
def test_bodies_that_wait_for_a_thread_count_for_the_limit(
    service: Any, monkeypatch: pytest.MonkeyPatch, waits_in: str
) -> None:
    owner = bodies if waits_in == "parse_body" else routes
    released = asyncio.Event()
    run_in_thread = owner.run_in_thread

    async def wait_first(function: Any, *arguments: Any, **options: Any) -> Any:
        if function is getattr(owner, waits_in):
            await released.wait()
        return await run_in_thread(function, *arguments, **options)

    monkeypatch.setattr(owner, "run_in_thread", wait_first)
    most = 5
    monkeypatch.setattr(bodies, "MAX_HELD_BYTES", most * MAX_BODY_BYTES)
    content = json.dumps(SMALL).encode().ljust(MAX_BODY_BYTES)

    async def run() -> Any:
        app = routes.make_app(service, max_waiting=256)
        async with client(app) as asking:

            async def send() -> Any:
                headers = {"Content-Type": "application/json"}
                return (await asking.post("/v1/completions", content=content, headers=headers)).status_code

            held = [asyncio.create_task(send()) for _ in range(most)]
            while bodies._HeldBytes.total_bytes < most * MAX_BODY_BYTES:
                await asyncio.wait(held, timeout=0.01)
            refused = [await send() for _ in range(3)]
            released.set()
            return await asyncio.gather(*held), refused, await send()

    held, refused, after = asyncio.run(asyncio.wait_for(run(), 60))
    assert (held, refused, after) == ([200] * most, [503] * 3, 200)
    assert bodies._HeldBytes.total_bytes == 0
