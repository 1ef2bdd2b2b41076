"""Wrap all routes: check the key, add a request id, and write one log line per request, without keys and prompts."""

import base64
import hmac
import logging
import re
import secrets
import time
from typing import Any
from urllib.parse import quote

from hone_api.layout import ADMIN_HEADER
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hone_server.http.pages import PAGE_FILES
from hone_server.protocol.errors import ApiError

log = logging.getLogger("hone_server.requests")

# For probes and Prometheus, which send no key.
OPEN_PATHS = UNLOGGED_PATHS = frozenset({"/health", "/metrics"})
# A browser asks for a password when these are refused, and sends the key as this password.
PAGE_PATHS = frozenset({*PAGE_FILES, "/openapi.json"})
REQUEST_ID_HEADER = "x-request-id"
REQUEST_ID_PATTERN = re.compile(r"[\w.:/+=-]{1,128}", re.ASCII)


class AccessMiddleware:
    """Wraps the application. With a key, all but the open paths need `Authorization: Bearer <key>`.

    The pages take the key as the password of `Basic` as well: other sites can't use a browser's password for the API.
    closes_connections: whether every answer closes its connection. last_request_at: when a client's last request came,
    by time.monotonic; probes, scrapes and the adapter sidecar don't count.
    """

    def __init__(self, app: ASGIApp, key: str | None) -> None:
        self.closes_connections = False
        self.last_request_at = time.monotonic()
        self._app = app
        self._key = key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers, started, status = Headers(scope=scope), time.monotonic(), 0
        is_clients = scope["path"] not in UNLOGGED_PATHS and ADMIN_HEADER not in headers
        if is_clients:
            self.last_request_at = started
        given = headers.get(REQUEST_ID_HEADER, "")
        request_id = given if REQUEST_ID_PATTERN.fullmatch(given) else secrets.token_hex(16)

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                answer = MutableHeaders(scope=message)
                answer[REQUEST_ID_HEADER] = request_id
                if self.closes_connections:
                    answer["connection"] = "close"
            await send(message)

        app = self._app if self._is_allowed(scope["method"], scope["path"], headers) else _send_unauthorized
        try:
            await app(scope, receive, send_with_id)
        finally:
            if is_clients or scope["method"] != "GET":  # the adapter sidecar sends GET requests every two seconds
                seconds = time.monotonic() - started
                log.info("%s %s %s %d %.3f s", request_id, scope["method"], quote(scope["path"]), status, seconds)

    def _is_allowed(self, method: str, path: str, headers: Headers) -> bool:
        reads = method in ("GET", "HEAD")
        if self._key is None or (path in OPEN_PATHS and reads):
            return True
        if method == "OPTIONS" and "origin" in headers and "access-control-request-method" in headers:
            return True  # a browser's preflight request never has the key
        scheme, _, text = headers.get("authorization", "").partition(" ")
        token = text.encode("latin-1").strip()  # latin-1 as headers; stripping text could remove bytes of a key
        if scheme.lower() == "basic" and path in PAGE_PATHS and reads:
            token = _decode_password(token)
        elif scheme.lower() != "bearer":
            return False
        return hmac.compare_digest(token, self._key.encode("utf-8", "surrogateescape"))


def _decode_password(credentials: bytes) -> bytes:
    """Return the password of Basic credentials; empty if they are damaged."""
    try:
        return base64.b64decode(credentials, validate=True).partition(b":")[2]
    except ValueError:
        return b""


async def _send_unauthorized(scope: Scope, receive: Receive, send: Send) -> None:
    message = "this server needs an API key, as the header 'Authorization: Bearer <key>', and got "
    # litellm recognizes a wrong key by the start of OpenAI's message, and takes other errors of this type as invalid
    # requests.
    is_given = "authorization" in Headers(scope=scope)
    message = f"Incorrect API key provided: {message}another one" if is_given else f"{message}none"
    error: dict[str, Any] = ApiError(401, message, code="invalid_api_key").make_body()
    asks = 'Basic realm="Hone: any user, and the API key as password", charset="UTF-8"'
    challenge = asks if scope["path"] in PAGE_PATHS else "Bearer"
    await JSONResponse(error, 401, headers={"WWW-Authenticate": challenge})(scope, receive, send)
