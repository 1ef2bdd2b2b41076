"""The event loop stays free, a failure affects only its own request, and slow clients block nothing."""

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from hone_api.reasons import HoneError
from hone_server.generation import detokenizer
from hone_server.http import connections, server
from hone_server.http.connections import BoundedConnection, WatchingServer
from hone_server.protocol import bodies
from hone_server.protocol.bounds import MAX_BODY_BYTES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from inprocess import CONTEXT, Service, served_in_thread
from transformers import AutoTokenizer

SMALL = {"model": "m", "prompt": "hello", "max_tokens": 1}


class Watched:
    """A tokenizer that records in which threads it runs."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.threads = set()
        self.longest = 0

    def __getattr__(self, name: Any) -> Any:
        return getattr(self._tokenizer, name)

    def __len__(self) -> Any:
        return len(self._tokenizer)

    def __call__(self, given: Any, **options: Any) -> Any:
        self.threads.add(threading.get_ident())
        self.longest = max(self.longest, len(given))
        return self._tokenizer(given, **options)

    def apply_chat_template(self, *arguments: Any, **options: Any) -> Any:
        self.threads.add(threading.get_ident())
        return self._tokenizer.apply_chat_template(*arguments, **options)


@pytest.fixture(scope="module")
def service(base_folder: Path) -> Any:
    return Service(Watched(AutoTokenizer.from_pretrained(base_folder)))


@pytest.fixture(scope="module")
def place(service: Any) -> Iterator[Any]:
    with served_in_thread(service) as (host, port, loop):
        yield host, port, loop


@pytest.fixture
def connection(place: Any) -> Iterator[Any]:
    made = http.client.HTTPConnection(*place[:2], timeout=60)
    yield made
    made.close()


def send(connection: Any, body: Any, path: str = "/v1/completions", **headers: Any) -> Any:
    """Return status and error of a request, and whether the connection stays open."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection.request("POST", path, content, {"Content-Type": "application/json", **headers})
    answer = connection.getresponse()
    said = json.loads(answer.read())
    return answer.status, said.get("error", said), not answer.will_close


def test_work_that_grows_with_a_request_never_runs_on_the_event_loop(
    service: Any, place: Any, connection: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = service.only.tokenizer.threads
    threads.clear()

    def noting(owner: Any, name: Any) -> None:
        original = getattr(owner, name)

        def run(*arguments: Any, **options: Any) -> Any:
            threads.add(threading.get_ident())
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, run)

    noting(bodies.json, "loads")
    noting(bodies, "check_counts")
    noting(detokenizer, "_compute_failure_table")
    chat = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "stop": ["xyz"]}
    for path, body in [("/v1/completions", SMALL | {"stop": "xyz", "n": 3}), ("/v1/chat/completions", chat)]:
        for stream in (False, True):
            connection.request(
                "POST", path, json.dumps(body | {"stream": stream}), {"Content-Type": "application/json"}
            )
            answer = connection.getresponse()
            assert (answer.status, bool(answer.read())) == (200, True)
    assert threads
    assert place[2] not in threads


def test_a_long_answer_becomes_text_outside_of_the_event_loop(
    service: Any, place: Any, connection: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = []
    original = detokenizer.TextStream.push
    monkeypatch.setattr(
        detokenizer.TextStream, "push", lambda *given: (threads.append(threading.get_ident()), original(*given))[1]
    )
    status, answer, _ = send(connection, SMALL | {"max_tokens": 40})
    assert (status, answer["usage"]["completion_tokens"]) == (200, 40)
    assert len(threads) == 40
    assert place[2] not in threads


@pytest.mark.parametrize("size", [MAX_BODY_BYTES + 1, 8 << 20])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_large_is_refused_before_it_is_parsed(
    place: Any, connection: Any, monkeypatch: pytest.MonkeyPatch, size: Any, chunked: bool
) -> None:
    monkeypatch.setattr(bodies, "parse_body", lambda *_: pytest.fail("it was parsed"))
    content = b'{"prompt": "' + b"x" * (size - 14) + b'"}'
    pieces = (content[start : start + 60_000] for start in range(0, size, 60_000))
    connection.request(
        "POST",
        "/v1/completions",
        pieces if chunked else content,
        {"Content-Type": "application/json"},
        encode_chunked=chunked,
    )
    answer = connection.getresponse()
    assert answer.status == 413
    assert str(MAX_BODY_BYTES) in json.loads(answer.read())["error"]["message"]
    monkeypatch.undo()
    assert send(connection, SMALL)[0] == 200, "on the same connection"


def test_a_prompt_that_can_not_fit_is_refused_without_tokenizing_it(service: Any, connection: Any) -> None:
    service.only.tokenizer.longest = 0
    most = CONTEXT * service.only.max_token_characters
    status, error, _ = send(connection, SMALL | {"prompt": "x" * (most + 1)})
    assert (status, error["param"], error["code"]) == (400, "prompt", "context_length_exceeded")
    assert str(most) in error["message"]
    assert service.only.tokenizer.longest == 0


HALF = st.integers(0xD800, 0xDFFF).map(chr)
BROKEN = st.one_of(
    HALF.map(lambda half: SMALL | {"prompt": f"a{half}"}),
    HALF.map(lambda half: SMALL | {"model": half}),
    HALF.map(lambda half: SMALL | {half: 1}),
    st.sampled_from(["KeyError", "RecursionError", "MemoryError", "UnicodeError"]).map(
        lambda name: SMALL | {"model": name}
    ),
    st.sampled_from(
        [
            b"",
            b"{",
            b"[" * 100_000,
            b'{"prompt": "\xed\xa0\x80"}',
            b"\xff\xfe",
            b"1" * 5000,
            json.dumps(SMALL | {"prompt": "x" * 100_000}).encode(),
            json.dumps(SMALL | {"prompt": [[1]] * 30_000}).encode(),
        ]
    ),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(bodies=st.lists(BROKEN, min_size=1, max_size=4))
def test_after_any_refusal_or_failure_the_connection_serves_the_next_request(
    service: Any, connection: Any, bodies: Any
) -> None:
    for error in (KeyError("x"), RecursionError(), MemoryError(), UnicodeError("y")):
        service.failures[type(error).__name__] = error
    for body in bodies:
        status, error, is_open = send(connection, body)
        internal = isinstance(body, dict) and body.get("model") in service.failures
        assert status == (500 if internal else 400)
        assert set(error) == {"message", "type", "param", "code"}
        assert is_open
    assert send(connection, SMALL)[0] == 200


def test_a_stream_that_fails_ends_with_the_error_and_harms_no_other(
    service: Any, connection: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service.only.handle, "fails_after", 2, raising=False)
    body = json.dumps(SMALL | {"max_tokens": 9, "stream": True})
    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    events = [line for line in answer.read().decode().splitlines() if line]
    assert not answer.will_close
    assert "internal error: KeyError" in json.loads(events[-2].removeprefix("data: "))["error"]["message"]
    assert events[-1] == "data: [DONE]"
    monkeypatch.undo()
    assert send(connection, SMALL)[0] == 200


def test_a_body_of_another_kind_is_refused_by_its_header(connection: Any) -> None:
    for header, value, expected in [("Content-Type", "text/plain", 400), ("Content-Encoding", "gzip", 415)]:
        status, error, _ = send(connection, SMALL, **{header: value})
        assert status == expected
        assert header in error["message"]


JSON_HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"


def stays_open(opened: Any) -> Any:
    """Return whether the server has not closed this connection, after waiting for data or the end."""
    try:
        return bool(opened.recv(1 << 16))
    except ConnectionError:
        return False


@pytest.mark.parametrize(
    "begun",
    [
        b"",
        b"POST /v1/completions HTTP/1.1\r\nHost: a\r\n",
        JSON_HEAD + b"Content-Length: 100\r\n\r\n{",
        JSON_HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n",
        b"GET /health HTTP/1.1\r\nHost: a\r\n\r\nGET /health HTTP/1.1\r\nHo",
    ],
)
def test_a_request_that_never_ends_loses_its_connection(
    place: Any, monkeypatch: pytest.MonkeyPatch, begun: Any
) -> None:
    with socket.create_connection(place[:2], timeout=60) as opened:
        opened.sendall(begun)
        if begun.startswith(b"GET"):
            answer = b""
            while not answer.endswith(b"}"):
                answer += opened.recv(1 << 16)
            opened.sendall(b"st:")
        monkeypatch.setattr(connections, "HEAD_SECONDS", 0)
        monkeypatch.setattr(connections, "BODY_SECONDS", 0)
        assert not stays_open(opened)


def test_an_answer_that_the_client_does_not_read_is_dropped(
    place: Any, monkeypatch: pytest.MonkeyPatch, service: Any
) -> None:
    monkeypatch.setattr(connections, "WRITE_SECONDS", 0)
    seen = threading.Event()
    lost = BoundedConnection.connection_lost
    monkeypatch.setattr(BoundedConnection, "connection_lost", lambda *given: (lost(*given), seen.set())[0])
    with socket.create_connection(place[:2], timeout=60) as opened:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        opened.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: a\r\n\r\n" * 3000)
        assert seen.wait(60)


def test_many_half_open_connections_leave_room_for_a_whole_request(service: Any) -> None:
    with served_in_thread(service, most_connections=8) as (host, port, _):
        opened = [socket.create_connection((host, port), timeout=60) for _ in range(40)]
        for one in opened[:20]:
            one.sendall(b"POST /v1/completions HTTP/1.1\r\nContent-Le")
        last = http.client.HTTPConnection(host, port, timeout=60)
        assert send(last, SMALL)[0] == 200
        assert not any(stays_open(one) for one in opened[:32])
        for one in [*opened, last]:
            one.close()


@pytest.mark.parametrize(
    "begun",
    [
        b"POST /v1/completions HTTP/1.1\r\nHost: a\r\n",
        JSON_HEAD + b"Content-Length: 100\r\n\r\n{",
        JSON_HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n",
        b"GET /openapi.json HTTP/1.1\r\nHost: a\r\n\r\n" * 3000,
    ],
)
def test_a_slow_client_does_not_hold_up_the_end(service: Any, monkeypatch: pytest.MonkeyPatch, begun: Any) -> None:
    monkeypatch.setattr(WatchingServer, "on_tick", uvicorn.Server.on_tick)  # nothing is dropped before the end
    for name in ("HEAD_SECONDS", "BODY_SECONDS", "WRITE_SECONDS"):
        monkeypatch.setattr(connections, name, 0)
    with served_in_thread(service) as (host, port, _), socket.create_connection((host, port), timeout=60) as opened:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        opened.sendall(begun)
        whole = http.client.HTTPConnection(host, port, timeout=60)
        assert send(whole, SMALL)[0] == 200
        whole.close()


def test_the_engine_watches_its_connections_to_the_end() -> None:
    assert issubclass(server._Server, WatchingServer)


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("path", ["/v1/completions", "/nope"])
def test_nothing_is_read_after_a_request_with_two_lengths(place: Any, order: int, path: str) -> None:
    """A proxy in front of the server may have read what follows as the body."""
    body = json.dumps(SMALL).encode()
    lengths = [b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n"][::order]
    head = JSON_HEAD.replace(b"/v1/completions", path.encode()) + b"".join(lengths) + b"\r\n"
    second = b"GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n"
    with socket.create_connection(place[:2], timeout=60) as opened:
        opened.sendall(head + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) + second)
        answer = b""
        while part := opened.recv(1 << 16):
            answer += part
    assert answer.count(b"HTTP/1.1 ") == 1
    assert b"connection: close" in answer.lower()


@given(soft=st.integers(1, 5000), used=st.integers(5, 60))
def test_open_files_are_left_for_connections_or_their_limit_is_named(soft: Any, used: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connections.resource, "getrlimit", lambda _: (soft, soft))
        patch.setattr(connections.resource, "setrlimit", lambda *_: None)
        patch.setattr(connections.os, "listdir", lambda _: ["0"] * used)
        room = soft - used - connections.RESERVED_FILES
        if room >= connections.MIN_CONNECTIONS:
            assert connections.raise_file_limit() == min(room, connections.MAX_CONNECTIONS)
        else:
            with pytest.raises(HoneError, match=f"may open {soft} files") as refused:
                connections.raise_file_limit()
            assert "ulimit -n" in refused.value.format_message()
