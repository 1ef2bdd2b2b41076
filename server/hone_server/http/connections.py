"""Limit connections: uvicorn's protocol with deadlines for slow clients and a maximum number of connections.

A client has HEAD_SECONDS for the head of a request, BODY_SECONDS and a rate for its body, and WRITE_SECONDS to read the
data that waits for it; the time that the server needs does not count. uvicorn itself ends only connections that are
idle between two requests. `WatchingServer` calls `drop_overdue` once a second until it ends, so that no request needs a
timer.
"""

import asyncio
import os
import resource
import socket
import time
from typing import Any

import h11
import uvicorn
from hone_api.reasons import INVALID_SPEC, HoneError
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 15.0
BODY_SECONDS = 20.0
# Each time this many bytes of a body have come, the client gets one second more.
BODY_BYTES_PER_SECOND = 32 << 10
WRITE_SECONDS = 60.0
MAX_CONNECTIONS = 4096
# File descriptors that are reserved for everything but connections, in addition to those that are open at the start.
RESERVED_FILES = 64
MIN_CONNECTIONS = 16
# uvicorn's rate of on_tick.
TICKS_PER_SECOND = 10
READ_BYTES = 64 << 10
# Read at once from a connection. In a body with chunks of one byte, h11 takes some 20 us for each chunk, and handles
# all of one read together.
READ_CHUNKED_BYTES = 2 << 10


class BoundedConnection(H11Protocol):
    """One client's connection. Times are those of time.monotonic."""

    max_connections = MAX_CONNECTIONS
    # Connections whose client owes a request, the longest waiting first. Each server has its own.
    waiting: dict["BoundedConnection", None]

    @classmethod
    def with_limit(cls, most: int) -> type["BoundedConnection"]:
        """Return the class for a server with at most this many connections."""
        return type("Connection", (cls,), {"max_connections": most, "waiting": {}})

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # asyncio does this only for sockets that name their protocol; those of a listener that it gets do not. The head
        # and the body of an answer are two writes, and the second one would wait 40 ms for the first one's ACK.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        self._set_read_bytes(READ_BYTES)
        self._head_since: float | None = time.monotonic()
        self._body_since: float | None = None
        self._body_bytes = 0
        self._unread_since: float | None = None
        self._closing_since: float | None = None
        if len(self.connections) > self.max_connections and self.waiting:
            next(iter(self.waiting)).abort()
        elif len(self.connections) > self.max_connections:
            self.abort()
            return
        self.waiting[self] = None

    def connection_lost(self, exc: Exception | None) -> None:
        self.waiting.pop(self, None)
        super().connection_lost(exc)

    def abort(self) -> None:
        """Close the connection at once, discarding data that was not sent yet."""
        self.waiting.pop(self, None)
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        state = self.conn.their_state
        if state is h11.IDLE:
            self._head_since = self._head_since or time.monotonic()
            self._body_since = None
        elif state is h11.SEND_BODY:
            if self._body_since is None:
                self._body_since, self._body_bytes = time.monotonic(), 0
                is_chunked = any(name == b"transfer-encoding" for name, _ in self.headers)
                self._set_read_bytes(READ_CHUNKED_BYTES if is_chunked else READ_BYTES)
            self._body_bytes += len(data)
            self._head_since = None
        else:
            self._head_since = self._body_since = None
        if state is h11.IDLE or state is h11.SEND_BODY:
            self.waiting.setdefault(self, None)
        else:
            self.waiting.pop(self, None)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.transport.is_closing() and self.conn.their_state is h11.IDLE:
            self.waiting.setdefault(self, None)

    def handle_events(self) -> None:
        super().handle_events()
        # A proxy may have read a request with two lengths by the other one (RFC 9112, 6.1), so nothing that follows it
        # on this connection is read as another request.
        if self.cycle is not None and {b"content-length", b"transfer-encoding"} <= {name for name, _ in self.headers}:
            self.cycle.keep_alive = False
            self.cycle.default_headers = [*self.server_state.default_headers, (b"connection", b"close")]

    def _set_read_bytes(self, size: int) -> None:
        if hasattr(self.transport, "max_size"):  # asyncio's own loop; its default is 256 KiB
            self.transport.max_size = size

    def pause_writing(self) -> None:
        self._unread_since = time.monotonic()
        super().pause_writing()

    def resume_writing(self) -> None:
        self._unread_since = None
        super().resume_writing()

    def get_waiting_since(self) -> float | None:
        """Return since when the client has owed the rest of a request; None when the server owes the answer."""
        if self.conn.their_state is h11.IDLE:
            return self._head_since
        return self._body_since if self.conn.their_state is h11.SEND_BODY else None

    def is_overdue(self, now: float) -> bool:
        """Return whether the client has exceeded its time."""
        if self.transport.is_closing():  # data that the client did not read yet is still in memory
            self._closing_since = self._closing_since or now
            return now - self._closing_since > WRITE_SECONDS
        if self._unread_since is not None:
            return now - self._unread_since > WRITE_SECONDS
        since = self.get_waiting_since()
        if since is None or self.flow.read_paused:
            return False
        if self.conn.their_state is h11.IDLE:
            return now - since > HEAD_SECONDS
        return now - since > BODY_SECONDS + self._body_bytes / BODY_BYTES_PER_SECOND


def drop_overdue(connections: Any, now: float) -> int:
    """Abort the connections whose clients are overdue, and return how many there were."""
    overdue = [one for one in list(connections) if isinstance(one, BoundedConnection) and one.is_overdue(now)]
    for one in overdue:
        one.abort()
    return len(overdue)


class WatchingServer(uvicorn.Server):
    """uvicorn's server, which drops overdue connections, even during its shutdown."""

    async def on_tick(self, counter: int) -> bool:
        if counter % TICKS_PER_SECOND == 0:
            drop_overdue(self.server_state.connections, time.monotonic())
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        watching = asyncio.create_task(self._drop_overdue_forever())
        try:
            await super().shutdown(sockets)
        finally:
            watching.cancel()

    async def _drop_overdue_forever(self) -> None:
        while True:
            drop_overdue(self.server_state.connections, time.monotonic())
            await asyncio.sleep(1)


def raise_file_limit() -> int:
    """Raise this process's limit of open files, and return how many connections it allows.

    Raises HoneError InvalidSpec if that is less than MIN_CONNECTIONS.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    reserved = RESERVED_FILES + len(os.listdir("/dev/fd"))
    needed = MAX_CONNECTIONS + reserved
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(hard, needed)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    if soft < reserved + MIN_CONNECTIONS:
        message = f"the process may open {soft} files, and needs {reserved + MIN_CONNECTIONS} to answer a few clients"
        raise HoneError(INVALID_SPEC, message, remedy=f"Raise the limit: ulimit -n {needed}")
    return min(MAX_CONNECTIONS, soft - reserved)
