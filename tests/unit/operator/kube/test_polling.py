"""The operator's HTTP requests to pods, and the answers of hostile pods."""

import asyncio
import gzip
import json
import tracemalloc
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest
from hone_api.io.listening import join_address, open_listener
from hone_operator.kube import bounded_get, pod_poller
from hone_operator.kube.bounded_get import LARGEST_BODY
from hone_operator.kube.pod_answers import read_answer
from hone_operator.kube.pod_poller import Poller
from hone_operator.objects.resources import FINETUNEJOBS, INFERENCESERVICES, Key
from hypothesis import given
from hypothesis import strategies as st

JOB, SERVICE = Key(FINETUNEJOBS, "team", "faq"), Key(INFERENCESERVICES, "team", "faq")
REPORT = {"stage": "Training", "progress": {"step": 1, "totalSteps": 10, "percent": 10}}
OK = b"HTTP/1.1 200 OK\r\n"
BODY = json.dumps(REPORT).encode()


def sized(body: bytes, *headers: bytes) -> bytes:
    return OK + b"".join(line + b"\r\n" for line in headers) + b"Content-Length: %d\r\n\r\n" % len(body) + body


async def ask(answer: bytes, again: bytes = b"", host: str = "127.0.0.1") -> tuple[Any, list[bytes]]:
    """Return the poller's result for an answer, with `again` repeated without end, and the received requests."""
    requests = []

    async def attend(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            requests.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(answer.replace(b"PORT", str(port).encode()))
            while again:
                writer.write(again)
                await writer.drain()
            await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    listener = open_listener(host, 0)
    port = listener.getsockname()[1]
    async with await asyncio.start_server(attend, sock=listener):
        poller = Poller(lambda _: None)
        try:
            found = await poller._get(JOB, f"http://{join_address(host, port)}/progress")
        finally:
            await poller.close()
    return found, requests


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


def test_only_the_reports_fields_of_an_answer_are_kept() -> None:
    found, [request] = run(ask(sized(json.dumps({**REPORT, "more": [{}] * 1000}).encode())))
    assert found == REPORT
    assert b"Accept-Encoding: identity" in request


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:PORT/internal\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n",
        sized(gzip.compress(BODY), b"Content-Encoding: gzip"),
        sized(b"x" * (LARGEST_BODY + 1)),
        OK + b"Content-Length: 999999999999\r\n\r\n",
        sized(b'{"stage":' * 20_000),
        sized(b"[" * 200_000),
        sized(b"\xff\xfe"),
        sized(b""),
        sized(b"null"),
        sized(b"[]"),
        sized(b'{"data": [{"id": "m"}]}'),
        sized(b'{"stage": "Dancing"}'),
        sized(b'{"stage": "Training", "progress": {"step": -1, "totalSteps": 1}}'),
        sized(b'{"stage": "Training", "progress": {"step": 1' + b"0" * 5000 + b', "totalSteps": 1}}'),
        b"SSH-2.0-OpenSSH_9.6\r\n",
        OK + b"x: y\r\n" * 100_000,
    ],
)
def test_an_answer_without_a_report_is_ignored_and_not_followed(answer: bytes) -> None:
    found, requests = run(ask(answer))
    assert found is None
    assert len(requests) == 1


@pytest.mark.parametrize(
    ("answer", "again"),
    [
        (OK + b"Transfer-Encoding: chunked\r\n\r\n", b"10000\r\n" + b"x" * 65536 + b"\r\n"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n1;", b"x" * 65536),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1;x\r\n1\r\n"),
        (OK + b"\r\n", b"x" * 65536),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"", b"HTTP/1.1 103 Early Hints\r\n"),
        (b"HTTP/1.1 200 ", b"x" * 65536),
        (OK, b"x: y\r\n"),
        (OK + b"x: ", b"x" * 65536),
    ],
)
def test_an_answer_without_an_end_takes_no_memory(answer: bytes, again: bytes) -> None:
    tracemalloc.start()
    found, _ = run(ask(answer, again))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found is None
    assert peak < 16 << 20


def test_an_answer_may_end_with_its_connection() -> None:
    found, _ = run(ask(b"HTTP/1.0 200 OK\r\nServer: x\r\n\r\n" + BODY))
    assert found == REPORT


@pytest.mark.parametrize("extension", [b"", b";a=b"])
def test_chunks_are_joined(extension: bytes) -> None:
    pieces = [BODY[:5], BODY[5:20], BODY[20:]]
    chunks = b"".join(b"%x%s\r\n%s\r\n" % (len(piece), extension, piece) for piece in pieces)
    found, _ = run(ask(OK + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"))
    assert found == REPORT
    found, _ = run(ask(OK + b"Transfer-Encoding: chunked\r\n\r\n" + chunks))
    assert found is None


@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_are_an_answer_or_none(data: bytes, as_body: bool) -> None:
    found, _ = run(ask(sized(data) if as_body else data))
    assert found is None


def test_an_answer_that_arrives_slowly_has_a_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_get, "SECONDS", 0.2)

    async def drip() -> Any:
        async def attend(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(OK + b"Content-Length: 1000\r\n\r\n")
            while not writer.is_closing():
                writer.write(b" ")
                await asyncio.sleep(0.01)

        async with await asyncio.start_server(attend, "127.0.0.1", 0) as server:
            poller = Poller(lambda _: None)
            found = await poller._get(JOB, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
            await poller.close()
            return found

    assert run(drip()) is None


def test_a_pod_with_an_ipv6_address_is_asked() -> None:
    try:
        found, _ = run(ask(sized(BODY), host="::1"))
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    assert found == REPORT


async def wait_until(holds: Callable[[], object]) -> None:
    while not holds():  # noqa: ASYNC110
        await asyncio.sleep(0.01)


def poll(work: Callable[[Poller, list[str], dict[str, Any]], Awaitable[None]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run with a poller whose requests are answered from a dict by URL; an exception in it is raised."""
    monkeypatch.setattr(pod_poller, "EVERY_SECONDS", 0.01)
    asked: list[str] = []
    answers: dict[str, Any] = {}

    async def get(_: Key, url: str) -> Any:
        asked.append(url)
        if isinstance(answer := answers.get(url), Exception):
            raise answer
        return answer

    async def main() -> None:
        poller = Poller(lambda _: None)
        monkeypatch.setattr(poller, "_get", get)
        async with asyncio.timeout(60):
            await work(poller, asked, answers)
        await poller.close()

    asyncio.run(main())


def test_a_pod_with_another_address_is_asked_there_and_its_old_answer_is_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def work(poller: Poller, asked: list[str], answers: dict[str, Any]) -> None:
        answers["old"] = REPORT
        poller.want(JOB, {"u": "old"})
        await wait_until(lambda: poller.get_answers(JOB))
        poller.want(JOB, {"u": "new"})
        assert poller.get_answers(JOB) == {}
        asked.clear()
        await wait_until(lambda: len(asked) > 3)
        assert set(asked) == {"new"}
        poller.want(JOB, {})
        assert poller.get_last_answer_times(JOB) == {}

    poll(work, monkeypatch)


def test_no_answer_ends_the_polling(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(poller: Poller, asked: list[str], answers: dict[str, Any]) -> None:
        answers["url"] = RecursionError()
        poller.want(JOB, {"u": "url"})
        await wait_until(lambda: len(asked) > 2)
        answers["url"] = REPORT
        await wait_until(lambda: poller.get_answers(JOB))

    poll(work, monkeypatch)


@pytest.mark.parametrize(
    "moment", ["yesterday", "9999-12-31T23:59:59Z", "0001-01-01T00:00:00Z", "2026-01-01", 5, [], {}]
)
def test_an_invalid_moment_is_left_out(moment: object) -> None:
    report = {"stage": "Training", "progress": {"step": 1, "totalSteps": 2, "updatedAt": moment, "eta": 10**30}}
    assert read_answer(JOB, json.dumps(report).encode())["progress"] == {"step": 1, "totalSteps": 2, "percent": 0}


def test_a_sidecar_and_an_engine_are_read_by_their_fields() -> None:
    error = {"reason": "ArtifactCorrupt", "message": "m" * 100_000, "remedy": "r"}
    sidecar = {"models": ["base"], "adapters": {"a": {"loaded": False, "error": error, "x": 1}}, "newer": True}
    found = read_answer(SERVICE, json.dumps(sidecar).encode())
    assert len(found["adapters"]["a"]["error"]["message"]) == 2000
    assert "newer" not in found
    engine = {"object": "list", "data": [{"id": "m", "root": "/served/m", "permission": [{}]}]}
    assert read_answer(SERVICE, json.dumps(engine).encode()) == {"data": [{"id": "m", "root": "/served/m"}]}
