"""A small HTTP server for status pages: one thread for all clients, so that many or slow ones block nothing.

The pods that report their status listen on ports that every pod of the cluster reaches. A thread for each connection
would let any pod exhaust their memory. Here a client has REQUEST_SECONDS to send a request and to read the answer. Only
the path of a GET matters, and the oldest connection is closed when there are too many.
"""

import asyncio
import logging
import socket
from collections.abc import Callable
from http import HTTPStatus
from threading import Thread
from typing import NamedTuple

# As long as the kubelet and the operator wait for an answer.
REQUEST_SECONDS = 5.0
LONGEST_REQUEST = 16 << 10
MOST_CONNECTIONS = 128

logger = logging.getLogger(__name__)


class Answer(NamedTuple):
    """Status code, content type and body of an answer."""

    status: int
    kind: str = "text/plain; charset=utf-8"
    body: bytes = b""


class StatusServer:
    """Answers GET requests from a listening socket, in a thread that ends with the process."""

    def __init__(self, listener: socket.socket, answer: Callable[[str], Answer]) -> None:
        """Start to serve. `answer` gets the path without its query, is called in the thread, and returns soon."""
        self._server = LoopServer(answer)
        self._loop = asyncio.new_event_loop()
        self._listener = listener
        self._stopped = asyncio.Event()
        self._thread = Thread(target=self._loop.run_until_complete, args=(self._serve(),), name="http", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """Return the port of the listening socket."""
        return int(self._listener.getsockname()[1])

    def close(self) -> None:
        """Stop listening and close all connections."""
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join()
        self._loop.close()

    async def _serve(self) -> None:
        await self._server.start(self._listener)
        await self._stopped.wait()
        await self._server.close()


class LoopServer:
    """The same server in its caller's event loop: it answers only while that loop is not blocked."""

    def __init__(self, answer: Callable[[str], Answer]) -> None:
        self._answer = answer
        self._connections: dict[asyncio.Task[None], None] = {}
        self._server: asyncio.Server | None = None

    async def start(self, listener: socket.socket) -> None:
        """Serve from a listening socket."""
        listener.setblocking(False)
        self._server = await asyncio.start_server(self._attend, sock=listener, limit=LONGEST_REQUEST)

    async def close(self) -> None:
        """Stop listening and close all connections."""
        if self._server:
            self._server.close()
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _attend(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._connections) >= MOST_CONNECTIONS:
            oldest = next(iter(self._connections))
            del self._connections[oldest]
            oldest.cancel()
        self._connections[task] = None
        writer.transport.set_write_buffer_limits(0)  # so that `drain` waits until all is sent
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                writer.write(self._respond(await reader.readuntil(b"\r\n\r\n")))
                await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, asyncio.CancelledError):
            writer.transport.abort()  # drop unsent data of a client that does not read
        finally:
            self._connections.pop(task, None)
            writer.close()

    def _respond(self, request: bytes) -> bytes:
        method, _, rest = request.partition(b"\r\n")[0].decode("latin-1").partition(" ")
        path = rest.partition(" ")[0].partition("?")[0]
        if method != "GET":
            return _encode_answer(Answer(405, body=b"only GET is answered\n"))
        try:
            return _encode_answer(self._answer(path))
        except Exception:
            logger.exception("GET %s", path)
            return _encode_answer(Answer(500, body=b"the answer can't be made; see the log\n"))


def _encode_answer(answer: Answer) -> bytes:
    head = (
        f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}\r\nContent-Type: {answer.kind}\r\n"
        f"Content-Length: {len(answer.body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode("latin-1") + answer.body
