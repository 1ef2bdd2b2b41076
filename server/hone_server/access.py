"""Around all routes: the bearer token, a request id, and one log line a request, without keys and without prompts."""

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

from .errors import ApiError
from .pages import FILES

log = logging.getLogger("hone_server.requests")

OPEN = frozenset({*FILES, "/health", "/metrics", "/openapi.json"})  # these tell nothing of what was asked or answered
UNLOGGED = frozenset({"/health", "/metrics"})
REQUEST_ID = "x-request-id"
SOUND_ID = re.compile(r"[\w.:/+=-]{1,128}", re.ASCII)


class Access:
    """Wraps the application. With a key, all but the open paths need `Authorization: Bearer <key>`.

    While `closing`, every answer closes its connection. `asked_at`: when a client's last request came, by
    time.monotonic; probes, scrapes and the keeper don't count.
    """

    def __init__(self, app: ASGIApp, key: str | None) -> None:
        self.closing = False
        self.asked_at = time.monotonic()
        self._app = app
        self._key = key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers, started, status = Headers(scope=scope), time.monotonic(), 0
        is_clients = scope["path"] not in UNLOGGED and ADMIN_HEADER not in headers
        if is_clients:
            self.asked_at = started
        given = headers.get(REQUEST_ID, "")
        request_id = given if SOUND_ID.fullmatch(given) else secrets.token_hex(16)

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                answer = MutableHeaders(scope=message)
                answer[REQUEST_ID] = request_id
                if self.closing:
                    answer["connection"] = "close"
            await send(message)

        app = self._app if self._allowed(scope["path"], headers) else _unauthorized
        try:
            await app(scope, receive, send_with_id)
        finally:
            if is_clients or scope["method"] != "GET":  # the keeper looks every two seconds
                seconds = time.monotonic() - started
                log.info("%s %s %s %d %.3f s", request_id, scope["method"], quote(scope["path"]), status, seconds)

    def _allowed(self, path: str, headers: Headers) -> bool:
        if self._key is None or path in OPEN:
            return True
        scheme, _, token = headers.get("authorization", "").partition(" ")
        same = hmac.compare_digest(token.strip().encode("latin-1"), self._key.encode())  # headers are read as latin-1
        return same and scheme.lower() == "bearer"


async def _unauthorized(scope: Scope, receive: Receive, send: Send) -> None:
    message = "this server needs an API key, as the header 'Authorization: Bearer <key>', and got none or another one"
    error: dict[str, Any] = ApiError(401, message, code="invalid_api_key").body()
    await JSONResponse(error, 401, headers={"WWW-Authenticate": "Bearer"})(scope, receive, send)
