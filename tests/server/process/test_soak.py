"""The engines survive thousands of mixed concurrent requests, and sudden kills. `make soak` is the long version.

The long version tests the embedded engine and the real vLLM, on the CPU; the short version tests the embedded engine
only. HONE_SOAK_REQUESTS and HONE_SOAK_KILLS change the numbers of both.
"""

import itertools
import os
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hone_api.artifacts.manifest import BaseModelReference
from long_matrix import is_long, make_random
from mixed_load import (
    KINDS,
    RETRIED,
    STREAMS,
    Crowd,
    Kind,
    Question,
    Turn,
    ask_whole,
    deal,
    let_all_ask,
    make_questions,
    make_same_questions,
    prefer_ascii,
    read_choice,
)
from soak_engines import CONTEXT, Engine, make_embedded, make_vllm, start_sidecar
from vllm_environment import make_environment

pytestmark = pytest.mark.timeout(4 * 3600)

CLIENTS = 32
REQUESTS = int(os.environ.get("HONE_SOAK_REQUESTS") or (10_000 if is_long() else 260))
KILLS = int(os.environ.get("HONE_SOAK_KILLS") or (20 if is_long() else 1))
WARM_UP = 1_000
GROWTH = 1.02
START_SECONDS = 1800  # vLLM imports torch in three processes
IDLE_SECONDS = 600
GUEST = "guest"
PLACES = 4  # of adapters in a batch of vLLM, as the operator starts it
RETRIES = 100  # of 8 s at most each
IDLE = {"num_requests_running": 0, "num_requests_waiting": 0, "kv_cache_usage_perc": 0}


@dataclass(frozen=True)
class World:
    """An engine, two adapters that alternate under one name, and questions with their right answers.

    `base_questions` are those of the base. `questions` leave them out if its answers are known to be wrong.
    """

    engine: Engine
    guests: list[Path]
    questions: list[Question]
    base_questions: list[Question]
    guest_questions: list[tuple[Question, ...]]

    def make_crowd(self, **more: object) -> Crowd:
        return Crowd(self.engine.url, self.questions, self.guest_questions, several=self.engine.several, **more)

    def measure_idle(self) -> dict[str, float]:
        """Return the resources in use after a request. vLLM opens sockets of its own with the first one."""
        crowd = self.make_crowd()
        with crowd.client() as client:
            ask_whole(Turn(crowd, client, self.questions[0], random.Random(0)))
        return IDLE | {"connections": self.engine.load()["connections"]}

    def is_idle(self, idle: dict[str, float]) -> bool:
        """Return whether no resource is in use, and there are not more open connections than before."""
        used = self.engine.load()
        return used.pop("connections") <= idle["connections"] and used == IDLE


@pytest.fixture(scope="module")
def draw() -> random.Random:
    return make_random("soak")


@pytest.fixture(scope="module", params=["embedded", "vllm"] if is_long() else ["embedded"])
def world(
    request: pytest.FixtureRequest,
    model_maker: Callable[..., Path],
    adapter_maker: Callable[..., Path],
    seal_tree: Any,
    until: Callable[..., None],
    draw: random.Random,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[World]:
    """Return the base, the adapters `support`, an artifact, and `legal`, a PEFT folder without a tokenizer."""
    folder = tmp_path_factory.mktemp(request.param)
    is_vllm = request.param == "vllm"
    base = model_maker(folder / "claim" / "tiny-llama", hidden=256 if is_vllm else 64)
    if is_vllm:
        prefer_ascii(base)
    artifact = folder / "support"
    support = adapter_maker(artifact / "adapter", base, seed=1)
    digest = seal_tree(artifact, "adapter", BaseModelReference(claim="models", path="tiny-llama")).digest
    legal = adapter_maker(folder / "legal", base, seed=2)
    guests = [adapter_maker(folder / f"guest-{seed}", base, seed=seed) for seed in (11, 12)]
    questions = make_questions(base, {"support": support, "legal": legal}, 4, draw)
    guest_questions = make_same_questions(base, GUEST, guests, 2, draw)
    with ExitStack() as running:
        if is_vllm:
            engine = make_vllm(folder, make_environment(), base)
            adapters = [{"name": "support", "folder": str(artifact), "digest": digest}]
            sidecar = start_sidecar(folder, engine, [*adapters, {"name": "legal", "folder": str(legal)}])
            running.callback(sidecar.wait)
            running.callback(sidecar.kill)
            until(engine.token_file.exists)
        else:
            engine = make_embedded(folder, base, artifact, legal)
        engine.start()
        running.callback(engine.kill)
        until(engine.is_ready, START_SECONDS)
        base_questions = [question for question in questions if question.model == base.name]
        asked = [question for question in questions if question not in base_questions] if is_vllm else questions
        yield World(engine, guests, asked, base_questions, guest_questions)


def exchange_guests(world: World, crowd: Crowd, over: threading.Event) -> int:
    """Load, replace and unload the guest until it is over. Return how often one was loaded."""
    came = 0
    draw = random.Random(0)
    with crowd.client() as client:
        while not over.is_set():
            for number, folder in enumerate(world.guests):
                loaded = world.engine.admin("load", lora_name=GUEST, lora_path=str(folder), load_inplace=True)
                assert loaded.status_code == 200, loaded.text
                came += 1
                for same in crowd.guests:
                    ask_whole(Turn(crowd, client, same[number], draw))
                over.wait(0.2)
            assert world.engine.admin("unload", lora_name=GUEST).status_code == 200
    return came


def ask_while_guests_change(world: World, crowd: Crowd, turns: list[Kind], draw: random.Random) -> int:
    """Return how many guests were loaded."""
    over = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(exchange_guests, world, crowd, over)
        try:
            let_all_ask(crowd, turns, CLIENTS, draw)
        finally:
            over.set()
        return coming.result()


def test_many_clients_of_all_kinds_get_right_answers_and_leave_nothing_behind(
    world: World, until: Callable[..., None], draw: random.Random
) -> None:
    """In the long version, memory must not grow either."""
    before, idle = world.engine.models(), world.measure_idle()
    crowd = world.make_crowd()
    memory = []
    for start in range(0, REQUESTS, WARM_UP):
        requests = min(WARM_UP, REQUESTS - start)
        came = ask_while_guests_change(world, crowd, deal(KINDS, requests, draw), draw)
        assert came >= 2
        until(lambda: world.is_idle(idle), IDLE_SECONDS)
        memory.append(world.engine.memory())
        print(f"memory, KiB: {memory[-1]}; guests: {came}; requests: {crowd.request_counts.total()}")
    print(f"requests: {dict(crowd.request_counts)}")
    assert crowd.request_counts.total() == REQUESTS
    assert set(crowd.request_counts) == {kind.__name__ for kind in KINDS}
    assert world.engine.models() == before
    growth = sum(memory[-1].values()) / sum(memory[0].values())
    if world.engine.metrics == "vllm" and growth > GROWTH:
        pytest.xfail(f"the memory of vLLM's processes grew by {growth - 1:.1%} after the first {WARM_UP} requests")
    assert growth <= GROWTH


def test_clients_retry_and_the_same_models_come_back_when_the_engine_is_killed(
    world: World, until: Callable[..., None], draw: random.Random
) -> None:
    engine = world.engine
    before, idle = engine.models(), world.measure_idle()
    is_ready = threading.Event()
    is_ready.set()
    # The embedded engine listens only when it has its adapters. vLLM has them later: until then its pod is not ready.
    crowd = world.make_crowd(retries=RETRIES, is_ready=is_ready if engine.sidecar_url else None)
    over = threading.Event()
    turns = itertools.takewhile(lambda _: not over.is_set(), itertools.cycle(deal(RETRIED + STREAMS, 1000, draw)))
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(let_all_ask, crowd, turns, CLIENTS, draw)
        try:
            for kill in range(KILLS):
                answered = crowd.request_counts.total() + draw.randrange(CLIENTS, 2 * CLIENTS)
                until(lambda enough=answered: asking.done() or crowd.request_counts.total() >= enough, IDLE_SECONDS)
                print(f"kill {kill + 1}; requests so far: {crowd.request_counts.total()}")
                if asking.done():  # a client has failed, so all have stopped
                    break
                is_ready.clear()
                engine.kill()
                engine.start()
                until(engine.is_ready, START_SECONDS)
                assert engine.models() == before
                is_ready.set()
        finally:
            over.set()
            is_ready.set()  # otherwise the clients would wait without end
        asking.result()  # every client has its right answer
    until(lambda: world.is_idle(idle), IDLE_SECONDS)
    print(f"kills: {KILLS}; requests: {dict(crowd.request_counts)}")


def test_the_base_answers_as_before_next_to_many_adapters(world: World) -> None:
    crowd, draw = world.make_crowd(), random.Random(0)
    names = [f"another-{number}" for number in range(PLACES)]
    with crowd.client() as client:
        for name in names:
            assert world.engine.admin("load", lora_name=name, lora_path=str(world.guests[0])).status_code == 200
            client.completions.create(model=name, prompt="Hi", max_tokens=1)
        long = {"max_tokens": CONTEXT - 100, "extra_body": {"ignore_eos": True}}
        with client.completions.create(model=names[-1], prompt="Hi", stream=True, **long) as running:
            next(iter(running))
            answers = [Turn(crowd, client, asked, draw).create().choices[0] for asked in world.base_questions]
    for name in names:
        assert world.engine.admin("unload", lora_name=name).status_code == 200
    is_right = [read_choice(answer) for answer in answers] == [asked.answer for asked in world.base_questions]
    if world.engine.metrics == "vllm" and not is_right:
        pytest.xfail("on CPUs vLLM 0.32 puts the adapter of the last place on tokens of the base")
    assert is_right
