"""Run the server's process: HTTP first, then the models, and a graceful end.

HTTP starts before the models load, so that probes get an answer. After SIGTERM the server drains: it still accepts
connections for some time, because proxies and clients learn late that it ends.
"""

import asyncio
import logging
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import torch
import uvicorn
from hone_api.io.listening import join_address, open_listener
from hone_api.reasons import INVALID_SPEC, HoneError
from starlette.types import ASGIApp

from hone_server.artifacts.sources import ModelSources
from hone_server.generation.served_model import ChatOptions
from hone_server.http.admin_routes import AdminAuthMiddleware, make_admin_app
from hone_server.http.connections import BoundedConnection, WatchingServer, raise_file_limit
from hone_server.http.cors import add_cors_headers
from hone_server.http.middleware import AccessMiddleware
from hone_server.http.routes import make_app
from hone_server.logs import log_loop_exception
from hone_server.model_registry import READY, ModelRegistry
from hone_server.protocol.errors import InternalErrorMiddleware
from hone_server.structured.tool_formats import TOOL_CALL_FORMATS

log = logging.getLogger("hone_server")

# OpenAI's clients close an idle connection after 5 seconds. A server must wait longer, or it closes connections just as
# a request arrives.
KEEP_ALIVE_SECONDS = 75

# A drain continues while requests come, because some senders have not yet learnt that the pod ends; but there is a
# limit.
QUIET_SECONDS, LATEST_SECONDS = 3, 60


@dataclass(frozen=True)
class ServerOptions:
    """How to serve.

    max_waiting: answers of one model that may wait, before a request gets 429. drain_seconds: for how long after
    SIGTERM connections are accepted at least. admin_token_file: holds the token that allows loading and unloading
    adapters; None: nobody may. allowed_origins: of web pages that may call the API from a browser; "*" is any.
    `chat_template`, and `tool_call_parser` (a name in tool_formats.py), apply to all models; None: each model's own.
    """

    host: str
    port: int
    max_model_len: int | None
    max_waiting: int
    drain_seconds: int
    api_key: str | None = field(repr=False)
    admin_token_file: Path | None
    allowed_origins: list[str]
    chat_template: str | None
    tool_call_parser: str | None


def serve(sources: ModelSources, options: ServerOptions) -> HoneError | None:
    """Serve until SIGTERM or SIGINT, then finish the running requests. Return the error that prevented it, or None.

    While the models load, HTTP answers, with 503 on /health.
    """
    try:
        connection = BoundedConnection.with_limit(raise_file_limit())
        listener = open_listener(options.host, options.port)
    except HoneError as error:
        return error
    except OSError as error:
        message = f"--host is {options.host!r} and --port {options.port}, which can't be listened on: {error.strerror}"
        return HoneError(INVALID_SPEC, message, remedy="Choose another.")
    token_file = options.admin_token_file
    chat = ChatOptions(options.chat_template, TOOL_CALL_FORMATS.get(options.tool_call_parser or ""))
    registry = ModelRegistry(
        sources, options.max_model_len, hot_swaps_adapters=token_file is not None, chat_options=chat
    )
    routes: ASGIApp = make_app(registry, options.max_waiting)
    if token_file is not None:
        routes = AdminAuthMiddleware(routes, make_admin_app(registry), token_file)
    app = AccessMiddleware(routes, options.api_key)
    config = uvicorn.Config(
        add_cors_headers(InternalErrorMiddleware(app), options.allowed_origins),
        http=connection,
        ws="none",
        log_config=None,
        log_level="warning",
        access_log=False,
        proxy_headers=False,  # any client can send them, and compiling takes turns by the address of the connection
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
    )
    server = _Server(config, registry, app, options.drain_seconds)
    where = join_address(*listener.getsockname()[:2])
    log.info("starting on %s with %d threads", where, torch.get_num_threads())
    asyncio.run(_run_server(server, listener, registry))
    return registry.failure


class _Server(WatchingServer):
    """Ends some seconds after the first signal; at once at a second one, or if no model is ready.

    Senders learn late that the pod ends, so requests are answered meanwhile, and each answer closes its connection.
    """

    def __init__(
        self, config: uvicorn.Config, registry: ModelRegistry, access: AccessMiddleware, drain_seconds: int
    ) -> None:
        super().__init__(config)
        self._service = registry
        self._access = access
        self._drain_seconds = drain_seconds
        self._drain_end: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._drain_end is None and self._drain_seconds and self._service.get_state() == READY:
            self._drain_end = time.monotonic() + self._drain_seconds
            self._access.closes_connections = True
        else:
            super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        if self._drain_end is not None and (late := time.monotonic() - self._drain_end) >= 0:
            is_quiet = time.monotonic() - self._access.last_request_at >= QUIET_SECONDS
            self.should_exit = self.should_exit or is_quiet or late >= LATEST_SECONDS
        return await super().on_tick(counter)


async def _run_server(server: uvicorn.Server, listener: socket.socket, registry: ModelRegistry) -> None:
    def stop_after_failure(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            server.should_exit = True

    asyncio.get_running_loop().set_exception_handler(log_loop_exception)
    loading = asyncio.create_task(registry.load_models())
    loading.add_done_callback(stop_after_failure)
    try:
        await server.serve(sockets=[listener])
    except SystemExit as end:
        # After its graceful end uvicorn raises the signal again, and main's handler exits; a code means a failed start.
        if end.code:
            raise
    finally:
        loading.cancel()
        registry.stop()
