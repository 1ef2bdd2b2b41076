"""An HTTP proxy in front of an API server, which can inject faults and records all requests."""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp import web


@dataclass(frozen=True)
class Request:
    """A request for which a fault is chosen."""

    method: str
    path: str
    is_watch: bool
    # The name of the object to create.
    name: str = ""

    @property
    def is_write(self) -> bool:
        return self.method != "GET"


@dataclass(frozen=True)
class Seen:
    """A received request, when it came (monotonic), and the status of its answer; 0 without an answer."""

    at: float
    request: Request
    status: int


@dataclass(frozen=True)
class Fault:
    """What to do instead of, or before, passing a request on.

    `text`: answer 200 with it, like a load balancer with its own page. `lost`: pass the request on, and cut the
    connection instead of answering. `cut_after`: end a watch after these seconds.
    """

    refuse: bool = False
    status: int = 0
    headers: tuple[tuple[str, str], ...] = ()
    event: dict[str, Any] | None = None
    text: str = ""
    delay: float = 0.0
    lost: bool = False
    cut_after: float | None = None


Choose = Callable[[Request], Fault | None]


def status_body(code: int, reason: str, message: str = "a fault of the test") -> dict[str, Any]:
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "code": code,
        "reason": reason,
        "message": message,
    }


GONE = Fault(refuse=True)
EXPIRED = Fault(event={"type": "ERROR", "object": status_body(410, "Expired", "too old resource version")})
HTML = Fault(text="<html><body>502 Bad Gateway</body></html>\n")
BROKEN_STREAM = Fault(event={"type": "ERROR", "object": status_body(500, "InternalError", "unable to decode an event")})


class FaultProxy:
    """A proxy that runs in a thread of its own. `fault` chooses a fault for each request; None for none."""

    def __init__(self, server: str) -> None:
        self._server = server
        self._choose: Choose = lambda _: None
        self.seen: list[Seen] = []
        self._open: dict[int, web.Request] = {}
        self._loop = asyncio.new_event_loop()
        self.url = ""

    @contextmanager
    def fault(self, choose: Choose, *, cut: bool = True) -> Iterator[None]:
        """Inject faults until the context ends. `cut`: cut open connections first."""
        self._choose = choose
        if cut:
            is_cut = threading.Event()
            self._loop.call_soon_threadsafe(self._cut)
            self._loop.call_soon_threadsafe(is_cut.set)
            assert is_cut.wait(60)
        try:
            yield
        finally:
            self._choose = lambda _: None

    def list_requests_since(self, moment: float) -> list[Seen]:
        return [each for each in list(self.seen) if each.at >= moment]

    def _cut(self) -> None:
        for request in list(self._open.values()):
            if request.transport:
                request.transport.abort()

    @contextmanager
    def running(self) -> Iterator["FaultProxy"]:
        started = threading.Event()
        stop = asyncio.Event()

        async def main() -> None:
            application = web.Application(client_max_size=1 << 26)
            application.router.add_route("*", "/{path:.*}", self._handle)
            runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.5)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            connector = aiohttp.TCPConnector(ssl=False, limit=0)
            async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as self._session:
                started.set()
                await stop.wait()
                self._cut()
                others = asyncio.all_tasks() - {asyncio.current_task()}
                for task in others:
                    task.cancel()
                await asyncio.gather(*others, return_exceptions=True)
                await runner.cleanup()

        thread = threading.Thread(target=self._loop.run_until_complete, args=(main(),), daemon=True)
        thread.start()
        assert started.wait(60)
        try:
            yield self
        finally:
            self._loop.call_soon_threadsafe(stop.set)
            thread.join(10)

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        name = ""
        if request.method == "POST":
            name = json.loads(await request.read())["metadata"].get("name", "")
        info = Request(request.method, request.path, request.query.get("watch") == "true", name)
        fault = self._choose(info) or Fault()
        at = time.monotonic()
        self._open[id(request)] = request
        status = 0
        try:
            if fault.delay:
                await asyncio.sleep(fault.delay)
            if fault.refuse:
                return _abort(request)
            if fault.status:
                status = fault.status
                body = status_body(fault.status, {409: "Conflict", 429: "TooManyRequests"}.get(fault.status, "Fault"))
                return web.json_response(body, status=fault.status, headers=dict(fault.headers))
            if fault.text:
                status = 200
                return web.Response(text=fault.text, content_type="text/html")
            if fault.event and info.is_watch:
                status = 200
                return web.Response(text=json.dumps(fault.event) + "\n", content_type="application/json")
            response = await self._pass_on(request, fault)
            status = response.status
            return response
        except (aiohttp.ClientError, ConnectionError):  # cut on either side
            return _abort(request)
        finally:
            self.seen.append(Seen(at, info, status))
            del self._open[id(request)]

    async def _pass_on(self, request: web.Request, fault: Fault) -> web.StreamResponse:
        headers = {k: v for k, v in request.headers.items() if k.lower() not in ("host", "content-length")}
        async with self._session.request(
            request.method,
            self._server + request.raw_path,
            headers=headers,
            data=await request.read() or None,
            timeout=aiohttp.ClientTimeout(total=None),
        ) as answer:
            if fault.lost:
                await answer.read()
                return _abort(request)
            response = web.StreamResponse(status=answer.status)
            for name in ("Content-Type", "Content-Encoding", "Retry-After"):
                if name in answer.headers:
                    response.headers[name] = answer.headers[name]
            await response.prepare(request)
            end = fault.cut_after if request.query.get("watch") else None
            try:
                async with asyncio.timeout(end):
                    async for chunk in answer.content.iter_any():
                        await response.write(chunk)
            except TimeoutError:
                return _abort(request)
            await response.write_eof()
            return response


def _abort(request: web.Request) -> web.StreamResponse:
    if request.transport:
        request.transport.abort()
    return web.Response()
