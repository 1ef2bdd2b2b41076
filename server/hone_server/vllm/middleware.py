"""An ASGI middleware for vLLM: it checks the key, reserves the routes that load adapters for the sidecar, and drains.

It runs in vLLM's image, as the module `hone_gate`, so it imports nothing of Hone's. vLLM's own check of the key covers
only some prefixes of its routes; this one covers all but OPEN_PATHS. On routes that load and unload adapters, requests
without the token get the answer that they would get if the routes did not exist.

`python3 -m hone_gate drain SECONDS` is the pod's preStop hook: it waits that long, and until requests have stopped. In
this time vLLM still answers, and every answer closes its connection. Otherwise clients would find their kept
connections closed when vLLM ends.

`python3 -m hone_gate ask PORT MODEL` is its startup probe: whether the model answers. vLLM's /health does not ask a
model.

A replaced adapter is loaded under a new id, so that running answers end on the old weights. vLLM's own `load_inplace`
changes their weights during the answer, and reads the files again in every step.
"""

import asyncio
import hmac
import json
import logging
import os
import re
import sys
import time
import urllib.request
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

# The variable that names the file with the clients' key; without it no key is needed.
KEY_FILE_ENV = "HONE_API_KEY_FILE"
# Routes for probes and Prometheus, which send no key.
OPEN_PATHS = frozenset({"/health", "/metrics"})
UNAUTHORIZED_BODY = json.dumps(
    {
        "error": {
            "message": "this server needs an API key, as the header 'Authorization: Bearer <key>', and got none or "
            "another one",
            "type": "invalid_request_error",
            "param": None,
            "code": "invalid_api_key",
        }
    }
).encode()

CORS_HEADERS = frozenset({b"access-control-allow-origin", b"access-control-allow-credentials", b"vary"})

NOT_FOUND_BODY = b'{"detail":"Not Found"}'

TOKEN_FILE_ENV = "HONE_ADMIN_TOKEN_FILE"
ADMIN_HEADER = b"x-hone-admin"
LOAD_PATH, UNLOAD_PATH = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
# Includes SageMaker's names of these routes, and a root path before them.
ADMIN_PATHS = re.compile(r"(/v1/(un)?load_lora_adapter|(^|/)adapters(/[^/]*)?)/*$")
# The name under which new weights are loaded first, before the old ones are unloaded.
STAGING_NAME = "{}~hone"

# Exists while vLLM drains; its modification time is that of a client's last request.
DRAIN_FILE = Path(os.environ.get("TMPDIR", "/tmp"), "hone-draining")
# As in the embedded engine: drain until no request has come for this long, but with a limit.
QUIET_SECONDS, LATEST_SECONDS = 3, 60


class Gate:
    """The middleware. Requests wait while a name changes its weights."""

    def __init__(self, app: App) -> None:
        DRAIN_FILE.unlink(missing_ok=True)  # left by an engine that restarted in this pod
        self._app = app
        self._key = read_key()
        self._can_generate = asyncio.Event()
        self._can_generate.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not is_allowed(scope, self._key):
            await refuse_connection(scope, send, *await find_cors_headers(self._app, scope))
        elif scope["type"] != "http":
            await self._app(scope, receive, send)
        elif not ADMIN_PATHS.search(scope["path"]):
            if scope["method"] == "POST":
                # Read the body first: a slow request must not pass here and reach vLLM during a change.
                receive = _replay_body(await _read_body(receive), receive)
                await self._can_generate.wait()
            await self._app(scope, receive, _close_while_draining(scope, send))
        elif is_preflight(scope):  # for a route that does not exist the answer is the same
            await self._app(scope | {"path": "/", "raw_path": b"/"}, receive, send)
        elif not _has_token(scope):
            await send_answer(send, 404, NOT_FOUND_BODY, *await find_cors_headers(self._app, scope))
        else:
            await self._replace_adapter(scope, receive, send)

    async def _replace_adapter(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await _read_body(receive)
        requested = _parse_json_object(body) if scope["path"].endswith(LOAD_PATH) else {}
        if not requested.get("load_inplace"):
            await self._app(scope, _replay_body(body), send)
            return
        name, path = requested.get("lora_name"), requested.get("lora_path")
        staging_name = STAGING_NAME.format(name)
        status, answer_body = await self._call_app(scope, LOAD_PATH, {"lora_name": staging_name, "lora_path": path})
        if status == 200:
            self._can_generate.clear()
            try:
                await self._call_app(scope, UNLOAD_PATH, {"lora_name": name})
                status, answer_body = await self._call_app(scope, LOAD_PATH, {"lora_name": name, "lora_path": path})
            finally:
                self._can_generate.set()
            await self._call_app(scope, UNLOAD_PATH, {"lora_name": staging_name})
        await send_answer(send, status, answer_body)

    async def _call_app(self, scope: Scope, path: str, body: dict[str, Any]) -> tuple[int, bytes]:
        """Return status and body of the application's own answer."""
        path = scope["path"][: -len(LOAD_PATH)] + path
        status, answer_body = 500, b""

        async def send(message: dict[str, Any]) -> None:
            nonlocal status, answer_body
            if message["type"] == "http.response.start":
                status = message["status"]
            else:
                answer_body += message.get("body", b"")

        data = json.dumps(body).encode()
        headers = [(key, value) for key, value in scope["headers"] if key.lower() != b"content-length"]
        headers.append((b"content-length", str(len(data)).encode()))
        changed = {"path": path, "raw_path": path.encode(), "headers": headers, "state": dict(scope.get("state", {}))}
        await self._app({**scope, **changed}, _replay_body(data), send)
        return status, answer_body


def read_key() -> bytes | None:
    """Return the key that clients must send; None: none is needed. An empty key, which nobody can send, stays empty."""
    if KEY_FILE_ENV not in os.environ:
        return None
    try:
        return Path(os.environ[KEY_FILE_ENV]).read_bytes().strip()
    except OSError as error:
        logging.getLogger("hone_gate").error("every request is refused, because the key can't be read: %s", error)
        return b""


def is_allowed(scope: Scope, key: bytes | None) -> bool:
    """Return whether a connection sends the key, or needs none."""
    if key is None or scope["type"] not in ("http", "websocket"):
        return True
    if scope["type"] == "http":
        path = scope["path"].removeprefix(scope.get("root_path") or "")
        if scope["method"] in ("GET", "HEAD") and path in OPEN_PATHS:
            return True
        if is_preflight(scope):
            return True
    given = [value for name, value in scope["headers"] if name.lower() == b"authorization"]
    if len(given) != 1 or not key:
        return False
    scheme, _, token = given[0].partition(b" ")
    return scheme.lower() == b"bearer" and hmac.compare_digest(token.strip(), key)


def is_preflight(scope: Scope) -> bool:
    """Return whether this is a browser's preflight request, which never has the key."""
    names = {name.lower() for name, _ in scope["headers"]}
    return scope.get("method") == "OPTIONS" and {b"origin", b"access-control-request-method"} <= names


async def find_cors_headers(app: App, scope: Scope) -> list[tuple[bytes, bytes]]:
    """Return the headers with which the application lets a web page of this request's origin read an answer.

    vLLM adds them inside its middlewares, where only its own answers get them, and `--allowed-origins` is not known
    here. So this sends vLLM a preflight request, which it answers without the engine.
    """
    origins = [value for name, value in scope["headers"] if name.lower() == b"origin"]
    if scope["type"] != "http" or len(origins) != 1:
        return []
    found: list[tuple[bytes, bytes]] = []

    async def collect_headers(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            found.extend((name, value) for name, value in message["headers"] if name.lower() in CORS_HEADERS)

    headers = [(b"origin", origins[0]), (b"access-control-request-method", scope["method"].encode())]
    preflight = {"method": "OPTIONS", "path": "/", "raw_path": b"/", "query_string": b"", "headers": headers}
    await app({**scope, **preflight, "state": dict(scope.get("state", {}))}, _replay_body(b""), collect_headers)
    return found


async def refuse_connection(scope: Scope, send: Send, *more: tuple[bytes, bytes]) -> None:
    """Answer 401 in OpenAI's shape."""
    if scope["type"] == "http":
        await send_answer(send, 401, UNAUTHORIZED_BODY, (b"www-authenticate", b"Bearer"), *more)
    elif "websocket.http.response" in scope.get("extensions", {}):

        async def send_to_handshake(message: dict[str, Any]) -> None:
            await send(message | {"type": message["type"].replace("http.", "websocket.http.", 1)})

        await send_answer(send_to_handshake, 401, UNAUTHORIZED_BODY, (b"www-authenticate", b"Bearer"))
    else:
        await send({"type": "websocket.close", "code": 1008})


def wait_for_drain(seconds: float) -> None:
    """Wait until vLLM may end."""
    DRAIN_FILE.touch()
    started = time.time()
    while True:
        late, quiet = time.time() - started - seconds, time.time() - DRAIN_FILE.stat().st_mtime
        if late >= LATEST_SECONDS or (late >= 0 and quiet >= QUIET_SECONDS):
            return
        time.sleep(0.2)


def ask_model(port: int, model: str) -> None:
    """Let vLLM generate one token. Raises OSError if it fails."""
    headers = {"Content-Type": "application/json"}
    if key := read_key():
        headers["Authorization"] = f"Bearer {key.decode('latin-1')}"
    body = json.dumps({"model": model, "prompt": "Hi", "max_tokens": 1}).encode()
    url = f"http://127.0.0.1:{port}/v1/completions"
    # A proxy that the environment names does not reach this pod's loopback, and must not see the key.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect)
    opener.open(urllib.request.Request(url, body, headers)).close()


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows no redirect, because only the engine may get the key."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _close_while_draining(scope: Scope, send: Send) -> Send:
    """Return a `send` that closes the connection after the answer while vLLM drains."""
    if not DRAIN_FILE.exists():
        return send
    if scope["path"] not in OPEN_PATHS and not any(key.lower() == ADMIN_HEADER for key, _ in scope["headers"]):
        DRAIN_FILE.touch()

    async def send_and_close(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message = message | {"headers": [*message["headers"], (b"connection", b"close")]}
        await send(message)

    return send_and_close


def _has_token(scope: Scope) -> bool:
    try:
        with open(os.environ[TOKEN_FILE_ENV], "rb") as file:
            token = file.read().strip()
    except (KeyError, OSError):
        return False
    given = [value for key, value in scope["headers"] if key.lower() == ADMIN_HEADER]
    return bool(token) and len(given) == 1 and hmac.compare_digest(given[0], token)


def _parse_json_object(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


async def _read_body(receive: Receive) -> bytes:
    parts: list[bytes] = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


async def _wait_forever() -> dict[str, Any]:
    return await asyncio.Future()


def _replay_body(body: bytes, then: Receive = _wait_forever) -> Receive:
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> dict[str, Any]:
        return messages.pop() if messages else await then()

    return receive


async def send_answer(send: Send, status: int, body: bytes, *more: tuple[bytes, bytes]) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *more]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


if __name__ == "__main__":
    if sys.argv[1] == "drain":
        wait_for_drain(float(sys.argv[2]))
    else:
        try:
            ask_model(int(sys.argv[2]), sys.argv[3])
        except OSError as error:
            sys.exit(f"no answer of {sys.argv[3]}: {error}")
