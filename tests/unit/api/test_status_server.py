"""The ports of Hone's pods: both address families, and clients that are many, slow, large or hostile."""

import http.client
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from hone_api.io.listening import join_address, open_listener, split_address
from hone_api.io.status_server import LONGEST_REQUEST, MOST_CONNECTIONS, Answer, StatusServer


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6 loopback: nothing of IPv6 is tested")


def answer(path: str) -> Answer:
    if path == "/raises":
        raise ValueError(path)
    return Answer(200, body=path.encode() * 500_000) if path == "/large" else Answer(200, body=path.encode())


@pytest.fixture
def server() -> Iterator[StatusServer]:
    server = StatusServer(open_listener("", 0), answer)
    yield server
    server.close()


def get(host: str, port: int, path: str = "/x", method: str = "GET") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(host, port, timeout=30)
    connection.request(method, path)
    response = connection.getresponse()
    return response.status, response.read()


@pytest.mark.parametrize("host", ["127.0.0.1", pytest.param("::1", marks=needs_ipv6)])
def test_both_families_are_answered_on_one_port(server: StatusServer, host: str) -> None:
    assert get(host, server.port) == (200, b"/x")


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [("/x?y=1", "GET", 200), ("/raises", "GET", 500), ("/x", "POST", 405), ("/large", "GET", 200)],
)
def test_what_is_answered(server: StatusServer, path: str, method: str, status: int) -> None:
    assert get("127.0.0.1", server.port, path, method)[0] == status


@pytest.mark.parametrize("sent", [b"", b"GET /x HTT", b"GET /large HTTP/1.1\r\n\r\n"])
def test_many_slow_clients_block_no_thread_and_no_other_client(server: StatusServer, sent: bytes) -> None:
    before = threading.active_count()
    with ExitStack() as stack:
        for _ in range(MOST_CONNECTIONS + 72):
            slow = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            slow.sendall(sent)
        assert get("127.0.0.1", server.port) == (200, b"/x")
        assert threading.active_count() == before


def test_a_request_without_an_end_is_cut(server: StatusServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
        try:
            client.sendall(b"GET /" + b"x" * (4 * LONGEST_REQUEST))
            assert client.recv(1) == b""
        except ConnectionError:
            pass
    assert get("127.0.0.1", server.port) == (200, b"/x")


def test_a_closed_server_leaves_its_port() -> None:
    server = StatusServer(open_listener("127.0.0.1", 0), answer)
    port = server.port
    server.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)


def test_a_machine_without_ipv6_is_listened_on_by_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    create = socket.create_server

    def refuse(address: tuple[str, int], *, family: int = socket.AF_INET, **options: bool) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(97, "Address family not supported by protocol")
        return create(address)

    monkeypatch.setattr(socket, "create_server", refuse)
    with open_listener("::", 0) as listener:
        assert listener.getsockname()[0] == "0.0.0.0"


def test_a_port_that_is_taken_is_reported() -> None:
    with open_listener("", 0) as listener, pytest.raises(OSError, match="in use"):
        open_listener("", listener.getsockname()[1])


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [("0.0.0.0:8080", "0.0.0.0", 8080), (":8080", "", 8080), ("[::]:8080", "::", 8080), ("[::1]:0", "::1", 0)],
)
def test_addresses_are_split(text: str, host: str, port: int) -> None:
    assert split_address(text) == (host, port)


@pytest.mark.parametrize("text", ["", "8080", "a:", "a:b", "a:70000", "a:-1", ":::8080", "fd00::1:8080", "[::]", "a:²"])
def test_an_invalid_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not of the form|without brackets"):
        split_address(text)


def test_ipv6_addresses_get_brackets_in_urls() -> None:
    assert join_address("fd00:10:244::1f", 8081) == "[fd00:10:244::1f]:8081"
    assert join_address("10.0.0.7", 8081) == "10.0.0.7:8081"
