"""`python -m hone_server.key_guard`: a proxy that checks the key for an engine on the pod's loopback.

For engines whose own check of the key leaves routes open. In: requests to the engine's port. Out: 401 without the key,
except for health and metrics; 404 for paths that are not for clients; everything else is streamed to the engine and
back. The check itself is in vllm/middleware.py, as for vLLM. Does not import torch.
"""

import argparse
import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NoReturn

import httpx
import uvicorn
from hone_api.containers import GUARD_PROGRAM, format_failure_line
from hone_api.io.listening import open_listener
from hone_api.io.terminal import make_output_safe, print_line
from hone_api.layout import ENGINE_PORT, GUARDED_PORT
from hone_api.reasons import INVALID_SPEC, HoneError

from hone_server.http.connections import BoundedConnection, WatchingServer, raise_file_limit
from hone_server.logs import configure_logging
from hone_server.vllm.middleware import (
    NOT_FOUND_BODY,
    Receive,
    Scope,
    Send,
    is_allowed,
    is_preflight,
    refuse_connection,
    send_answer,
)

# As in Hone's engines: clients close an idle connection after 5 seconds.
KEEP_ALIVE_SECONDS = 75
CONNECT_TIMEOUT_SECONDS = 5.0
# A connection of the client, and one to the engine.
FILES_PER_REQUEST = 2
# Headers that are not forwarded. The key is not forwarded either; the engine does not check it.
HOP_BY_HOP_HEADERS = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization te trailer transfer-encoding upgrade host".split()
)
NO_ANSWER_BODY = (
    b'{"error":{"message":"the engine does not answer","type":"server_error","param":null,"code":"not_ready"}}'
)


class KeyGuard:
    """Forwards allowed requests to the paths for clients: `routes`, where one that ends with / is a prefix."""

    def __init__(self, client: httpx.AsyncClient, key: bytes | None, routes: tuple[str, ...] = ()) -> None:
        self._client = client
        self._key = key
        self._exact = frozenset(routes)
        self._prefixes = tuple(route for route in routes if route.endswith("/") and route != "/")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return
        if not is_allowed(scope, self._key):
            await refuse_connection(scope, send, *_make_cors_headers(scope))
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
        elif not self._is_for_clients(scope["path"]):
            await _send_own_answer(scope, send, 404, NOT_FOUND_BODY)
        else:
            await self._forward(scope, receive, send)

    def _is_for_clients(self, path: str) -> bool:
        if not self._exact:
            return True
        is_plain = not {".", ".."}.intersection(path.split("/"))  # the engine might read such a path as another one
        return is_plain and (path in self._exact or path.startswith(self._prefixes))

    async def _forward(self, scope: Scope, receive: Receive, send: Send) -> None:
        names = {name.lower() for name, _ in scope["headers"]}
        body = _RequestBody(receive, is_empty=names.isdisjoint({b"content-length", b"transfer-encoding"}))
        exchange = asyncio.create_task(self._forward_request(scope, body, send))
        leaving = asyncio.create_task(body.wait_for_disconnect())
        try:
            await asyncio.wait({exchange, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            exchange.cancel()  # if it runs, this closes its connection, so that the engine stops
            await asyncio.gather(exchange, leaving, return_exceptions=True)
        if not exchange.cancelled() and (error := exchange.exception()):
            raise error

    async def _forward_request(self, scope: Scope, body: "_RequestBody", send: Send) -> None:
        headers = [
            (name, value)
            for name, value in scope["headers"]
            if name.lower() not in HOP_BY_HOP_HEADERS and name.lower() != b"authorization"
        ]
        target = scope["raw_path"] + (b"?" + scope["query_string"] if scope["query_string"] else b"")
        request = self._client.build_request(
            scope["method"],
            "/",
            headers=headers,
            content=None if body.is_empty else body,
            extensions={"target": target},
        )
        try:
            response = await self._client.send(request, stream=True)
        except httpx.ConnectError:
            await _send_own_answer(scope, send, 503, NO_ANSWER_BODY)
            return
        except httpx.RequestError:
            await _send_own_answer(scope, send, 502, NO_ANSWER_BODY)
            return
        try:
            passed = [(name, value) for name, value in response.headers.raw if name.lower() not in HOP_BY_HOP_HEADERS]
            await send({"type": "http.response.start", "status": response.status_code, "headers": passed})
            async for part in response.aiter_raw():
                await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            await response.aclose()


def _make_cors_headers(scope: Scope) -> list[tuple[bytes, bytes]]:
    """Return the headers that let a web page of any origin read an answer: the guard's own answers hold no secret."""
    is_asked = any(name.lower() == b"origin" for name, _ in scope["headers"])
    return [(b"access-control-allow-origin", b"*"), (b"vary", b"Origin")] if is_asked else []


async def _send_own_answer(scope: Scope, send: Send, status: int, body: bytes) -> None:
    """Answer instead of the engine. A browser's preflight request is granted, so that it sees this status."""
    if not is_preflight(scope):
        await send_answer(send, status, body, *_make_cors_headers(scope))
        return
    requested = {name.lower(): value for name, value in scope["headers"]}
    granted = [(b"access-control-allow-methods", requested[b"access-control-request-method"])]
    if b"access-control-request-headers" in requested:
        granted.append((b"access-control-allow-headers", requested[b"access-control-request-headers"]))
    await send_answer(send, 200, b"{}", *_make_cors_headers(scope), *granted)


class _RequestBody:
    """A request's body as it comes, and after it the moment when the client leaves."""

    def __init__(self, receive: Receive, *, is_empty: bool) -> None:
        self.is_empty = is_empty
        self._receive = receive
        self._sent, self._has_left = asyncio.Event(), False
        if is_empty:
            self._sent.set()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            while True:
                message = await self._receive()
                if message["type"] == "http.disconnect":
                    self._has_left = True
                    self._sent.set()
                    await asyncio.Future()  # until the exchange is cancelled
                if part := message.get("body"):
                    yield part
                if not message.get("more_body"):
                    return
        finally:
            self._sent.set()

    async def wait_for_disconnect(self) -> None:
        await self._sent.wait()
        while not self._has_left:
            self._has_left = (await self._receive())["type"] == "http.disconnect"


def make_guard(port: int, key: bytes | None, routes: tuple[str, ...]) -> KeyGuard:
    """Return the proxy for the engine that listens on this port of the loopback."""
    # The environment's proxy is not used; there are as many connections as requests; answers may take long.
    client = httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{port}",
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=2),
        timeout=httpx.Timeout(None, connect=CONNECT_TIMEOUT_SECONDS),
        trust_env=False,
        headers={"accept-encoding": "identity", "user-agent": "hone-guard"},
    )
    return KeyGuard(client, key, routes)


def main(argv: list[str] | None = None) -> None:
    """Run until SIGTERM, which the kubelet sends when the engine has ended."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    arguments = _parse_arguments(argv)
    make_output_safe(is_stdout_a_log=True)
    configure_logging()
    try:
        connection = BoundedConnection.with_limit(raise_file_limit() // FILES_PER_REQUEST)
    except HoneError as error:
        _exit_with_failure(error)
    key = None
    if arguments.api_key_file:
        key = arguments.api_key_file.read_bytes().strip()
        if not key:
            message = "the Secret of spec.apiKeySecret holds an empty key"
            _exit_with_failure(HoneError(INVALID_SPEC, message, remedy="Write a key into it, and delete the pod."))
    app = make_guard(arguments.engine_port, key, tuple(arguments.route))
    config = uvicorn.Config(
        app,
        log_config=None,
        http=connection,
        log_level="warning",
        access_log=False,
        lifespan="off",
        server_header=False,
        date_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
    )
    WatchingServer(config).run(sockets=[open_listener("", arguments.port)])


def _exit_with_failure(error: HoneError) -> NoReturn:
    print_line(format_failure_line(GUARD_PROGRAM, error))
    sys.exit(error.reason.exit_code or 1)


def _parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m hone_server.key_guard", description="Ask for the key of an engine."
    )
    parser.add_argument("--api-key-file", type=Path, help="holds the key that clients must send (default: none)")
    parser.add_argument("--route", action="append", default=[], help="a path for clients (default: all)")
    parser.add_argument("--engine-port", type=int, default=GUARDED_PORT)
    parser.add_argument("--port", type=int, default=ENGINE_PORT)
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
