"""The engine lasts: thousands of requests of all kinds at once, and sudden deaths. `make soak` is the long version."""

import itertools
import os
import random
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
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
)

pytestmark = pytest.mark.timeout(4 * 3600)

CLIENTS = 32
WARM_UP = 1_000
REQUESTS = 10_000
FEW_REQUESTS = 260
GROWTH = 1.02
GUEST = "guest"
TOKEN = "t0ken-of-the-test"
RETRIES = 100  # of 8 s at most each


class Engine:
    """A server that can be killed, and started again at its address, as a kubelet does."""

    def __init__(self, port: int, log: Path, *args: str) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._command = [sys.executable, "-m", "hone_server", *args, "--host", "127.0.0.1", "--port", str(port)]
        self._log = log
        self.process: subprocess.Popen[bytes]

    def start(self) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(self._command, stderr=log, env=environment)

    def is_ready(self) -> bool:
        assert self.process.poll() is None, self._log.read_text()
        try:
            return httpx.get(f"{self.url}/health", timeout=10).status_code == 200
        except httpx.TransportError:
            return False

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def models(self) -> dict[str, tuple[str, str | None]]:
        cards = httpx.get(f"{self.url}/v1/models", timeout=60).json()["data"]
        return {card["id"]: (card["root"], card["digest"]) for card in cards}

    def admin(self, action: str, **body: object) -> httpx.Response:
        headers = {"X-Hone-Admin": TOKEN}
        return httpx.post(f"{self.url}/v1/{action}_lora_adapter", json=body, headers=headers, timeout=300)

    def load(self) -> dict[str, float]:
        """What is in use: requests that run and wait, and cache, of all models; and open connections."""
        lines = httpx.get(f"{self.url}/metrics", timeout=60).text.splitlines()
        names = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
        used = {
            name: sum(float(line.split()[-1]) for line in lines if line.startswith(f"hone:{name}{{")) for name in names
        }
        return used | {"connections": self._connections()}

    def _connections(self) -> int:
        count = 0
        for file in Path(f"/proc/{self.process.pid}/fd").iterdir():
            try:
                count += os.readlink(file).startswith("socket:")
            except FileNotFoundError:
                continue
        return count

    def memory(self) -> int:
        """KiB of main memory."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:"))


def find_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


@pytest.fixture(scope="module")
def draw() -> random.Random:
    return make_random("soak")


@pytest.fixture(scope="module")
def guests(base_folder, adapter_maker, tmp_path_factory) -> list[Path]:
    """Two adapters that take turns under one name."""
    folder = tmp_path_factory.mktemp("guests")
    return [adapter_maker(folder / str(seed), base_folder, seed=seed) for seed in (11, 12)]


@pytest.fixture(scope="module")
def legal(base_folder, adapter_maker, tmp_path_factory) -> Path:
    """A PEFT folder without a tokenizer."""
    return adapter_maker(tmp_path_factory.mktemp("peft") / "legal", base_folder, seed=2)


@pytest.fixture(scope="module")
def guest_questions(base_folder, guests, draw) -> list[tuple[Question, ...]]:
    return make_same_questions(base_folder, GUEST, guests, 2, draw)


@pytest.fixture(scope="module")
def questions(base_folder, artifact, legal, draw) -> list[Question]:
    return make_questions(base_folder, {"support": artifact / "adapter", "legal": legal}, 4, draw)


@pytest.fixture(scope="module")
def engine(base_folder, artifact, legal, until, tmp_path_factory) -> Iterator[Engine]:
    folder = tmp_path_factory.mktemp("soak")
    token = folder / "token"
    token.write_text(TOKEN)
    args = [str(artifact), "--claim", f"models={base_folder.parent}", "--adapter", f"legal={legal}"]
    running = Engine(find_port(), folder / "log", *args, "--admin-token-file", str(token))
    running.start()
    try:
        until(running.is_ready)
        yield running
    finally:
        running.kill()


IDLE = {"num_requests_running": 0, "num_requests_waiting": 0, "kv_cache_usage_perc": 0}


def exchange_guests(engine: Engine, crowd: Crowd, guests: list[Path], over: threading.Event) -> int:
    """Load, replace and unload the guest until it is over. Return how often one came."""
    came = 0
    draw = random.Random(0)
    with crowd.client() as client:
        while not over.is_set():
            for number, folder in enumerate(guests):
                loaded = engine.admin("load", lora_name=GUEST, lora_path=str(folder), load_inplace=True)
                assert loaded.status_code == 200, loaded.text
                came += 1
                for same in crowd.guests:
                    ask_whole(Turn(crowd, client, same[number], draw))
                over.wait(0.2)
            assert engine.admin("unload", lora_name=GUEST).status_code == 200
    return came


def ask_while_guests_change(engine: Engine, crowd: Crowd, guests: list[Path], turns: list[Kind], draw) -> int:
    """Return how many guests came."""
    over = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(exchange_guests, engine, crowd, guests, over)
        try:
            let_all_ask(crowd, turns, CLIENTS, draw)
        finally:
            over.set()
        return coming.result()


def test_many_clients_of_all_kinds_get_right_answers_and_leave_nothing_behind(
    engine, questions, guests, guest_questions, until, draw
):
    """And in the long version no memory is used up either."""
    before = engine.models()
    idle = IDLE | {"connections": engine.load()["connections"]}
    crowd = Crowd(engine.url, questions, guest_questions)
    rounds = [WARM_UP, REQUESTS - WARM_UP] if is_long() else [FEW_REQUESTS]
    memory = []
    for requests in rounds:
        came = ask_while_guests_change(engine, crowd, guests, deal(KINDS, requests, draw), draw)
        assert came >= 2
        until(lambda: engine.load() == pytest.approx(idle))
        memory.append(engine.memory())
    assert crowd.asked.total() == sum(rounds)
    assert set(crowd.asked) == {kind.__name__ for kind in KINDS}
    assert engine.models() == before
    print(f"memory, KiB: {memory}; requests: {dict(crowd.asked)}")
    assert memory[-1] <= GROWTH * memory[0]


def test_clients_retry_and_the_same_models_come_back_when_the_engine_is_killed(
    engine, questions, guest_questions, until, draw
):
    before, idle = engine.models(), IDLE | {"connections": engine.load()["connections"]}
    kills = 20 if is_long() else 2
    crowd = Crowd(engine.url, questions, guest_questions, retries=RETRIES)
    over = threading.Event()
    turns = itertools.takewhile(lambda _: not over.is_set(), itertools.cycle(deal(RETRIED + STREAMS, 1000, draw)))
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(let_all_ask, crowd, turns, CLIENTS, draw)
        try:
            for _ in range(kills):
                answered = crowd.asked.total() + draw.randrange(CLIENTS, 2 * CLIENTS)
                until(lambda enough=answered: asking.done() or crowd.asked.total() >= enough)
                engine.kill()
                engine.start()
                until(engine.is_ready)
                assert engine.models() == before
        finally:
            over.set()
        asking.result()  # all who had asked have their right answer
    until(lambda: engine.load() == pytest.approx(idle))
    print(f"requests: {dict(crowd.asked)}")
