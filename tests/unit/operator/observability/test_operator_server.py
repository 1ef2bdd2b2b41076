"""The operator's port has the same limits as the ports of other pods, and answers from the operator's event loop."""

import asyncio
import http.client
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field

import pytest
from hone_api.io.status_server import LONGEST_REQUEST, MOST_CONNECTIONS
from hone_operator.observability.health import serve_status
from hone_operator.observability.metrics import Metrics
from run_isolation import find_free_port


@dataclass
class Running:
    """A server in an event loop of its own, with the answers that it gives."""

    port: int = 0
    sick: str | None = None
    unready: str | None = None
    remark: str | None = None
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)

    def get(self, path: str, method: str = "GET", timeout: float = 30) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.read().decode()


@pytest.fixture
def running() -> Iterator[Running]:
    found, started, stop = Running(), threading.Event(), asyncio.Event()

    async def run() -> None:
        found.port = find_free_port()
        address = f"127.0.0.1:{found.port}"
        server = await serve_status(address, Metrics(), lambda: found.sick, lambda: found.unready, lambda: found.remark)
        started.set()
        await stop.wait()
        await server.close()

    thread = threading.Thread(target=found.loop.run_until_complete, args=(run(),), daemon=True)
    thread.start()
    assert started.wait(30)
    yield found
    found.loop.call_soon_threadsafe(stop.set)
    thread.join(30)
    found.loop.close()


def test_the_paths_and_their_answers(running: Running) -> None:
    assert running.get("/healthz") == (200, "ok\n")
    assert running.get("/readyz?verbose") == (200, "ok\n")
    assert running.get("/metrics")[0] == 200
    assert "# HELP" in running.get("/metrics")[1]
    assert running.get("/else")[0] == 404
    assert running.get("/healthz", "POST")[0] == 405
    running.sick, running.unready, running.remark = "a pass hangs", "not all is listed", "can't list pods"
    assert running.get("/healthz") == (503, "a pass hangs\n")
    assert running.get("/readyz") == (503, "not all is listed; can't list pods\n")


@pytest.mark.parametrize("sent", [b"", b"GET /metrics HTTP/1.1\r\nX: " + b"a" * 8000, b"GET /metrics HTTP/1.1\r\n\r\n"])
def test_many_slow_clients_block_nobody(running: Running, sent: bytes) -> None:
    with ExitStack() as stack:
        for _ in range(MOST_CONNECTIONS + 72):
            slow = stack.enter_context(socket.create_connection(("127.0.0.1", running.port)))
            slow.sendall(sent)
        assert running.get("/healthz") == (200, "ok\n")
        tasks = asyncio.run_coroutine_threadsafe(_count_tasks(), running.loop).result(30)
        assert tasks <= MOST_CONNECTIONS + 10


def test_headers_without_an_end_are_cut(running: Running) -> None:
    with socket.create_connection(("127.0.0.1", running.port), timeout=30) as client:
        try:
            client.sendall(b"GET /metrics HTTP/1.1\r\n" + b"".join(b"X-%d: y\r\n" % n for n in range(LONGEST_REQUEST)))
            assert client.recv(1) == b""
        except ConnectionError:
            pass
    assert running.get("/healthz") == (200, "ok\n")


def test_an_idle_client_is_closed(running: Running) -> None:
    with socket.create_connection(("127.0.0.1", running.port), timeout=60) as client, suppress(ConnectionError):
        assert client.recv(1) == b""


def test_a_blocked_event_loop_does_not_answer_that_it_is_well(running: Running) -> None:
    held, freed = threading.Event(), threading.Event()

    def hold() -> None:
        held.set()
        freed.wait(60)

    running.loop.call_soon_threadsafe(hold)
    assert held.wait(30)
    try:
        with pytest.raises(TimeoutError):
            running.get("/healthz", timeout=0.5)
    finally:
        freed.set()
    assert running.get("/healthz") == (200, "ok\n")


async def _count_tasks() -> int:
    return len(asyncio.all_tasks())
