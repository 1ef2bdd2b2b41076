"""vLLM's middleware without a server, for tests that need to stop it at one moment."""

import asyncio
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hone_server.vllm import middleware as vllm_middleware

TOKEN = "t0ken"


class Application:
    """In place of vLLM: `loras` by name. Loading `name` waits for `may_load`, so that the name is missing meanwhile."""

    def __init__(self) -> None:
        self.loras = {"faq": "old"}
        self.replacing, self.may_load = asyncio.Event(), asyncio.Event()

    async def __call__(
        self, scope: vllm_middleware.Scope, receive: vllm_middleware.Receive, send: vllm_middleware.Send
    ) -> None:
        body = json.loads((await receive())["body"])
        status = 200
        if scope["path"] == vllm_middleware.LOAD_PATH:
            if body["lora_name"] == "faq":
                self.replacing.set()
                await self.may_load.wait()
            self.loras[body["lora_name"]] = body["lora_path"]
        elif scope["path"] == vllm_middleware.UNLOAD_PATH:
            del self.loras[body["lora_name"]]
        else:
            status = 200 if body["model"] in self.loras else 404
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text(TOKEN)
    monkeypatch.setenv(vllm_middleware.TOKEN_FILE_ENV, str(tmp_path / "token"))
    monkeypatch.setattr(vllm_middleware, "DRAIN_FILE", tmp_path / "draining")


def test_a_request_with_a_slow_body_waits_while_its_name_is_replaced() -> None:
    async def run() -> int:
        application = Application()
        middleware = vllm_middleware.Gate(application)
        body: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        asked = asyncio.create_task(post(middleware, "/v1/completions", body.get))
        await asyncio.sleep(0)  # it waits for its body
        load = {"lora_name": "faq", "lora_path": "new", "load_inplace": True}
        replaced = asyncio.create_task(post(middleware, vllm_middleware.LOAD_PATH, replay(load)))
        await application.replacing.wait()
        body.put_nowait({"type": "http.request", "body": b'{"model": "faq"}', "more_body": False})
        for _ in range(20):
            await asyncio.sleep(0)
        assert not asked.done()
        application.may_load.set()
        assert await replaced == 200
        assert application.loras == {"faq": "new"}
        return await asked

    assert asyncio.run(asyncio.wait_for(run(), 30)) == 200


def test_the_application_learns_that_a_client_has_left() -> None:
    async def run() -> str:
        heard: list[str] = []

        async def application(
            scope: vllm_middleware.Scope, receive: vllm_middleware.Receive, send: vllm_middleware.Send
        ) -> None:
            heard.extend([(await receive())["type"], (await receive())["type"]])

        messages = [{"type": "http.disconnect"}, {"type": "http.request", "body": b"{}", "more_body": False}]

        async def receive() -> dict[str, Any]:
            return messages.pop()

        scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": []}
        await vllm_middleware.Gate(application)(scope, receive, nowhere)
        return " ".join(heard)

    assert asyncio.run(run()) == "http.request http.disconnect"


@pytest.mark.parametrize("status", [200, 503])
def test_the_startup_probe_asks_the_model_with_the_clients_key(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, status: int
) -> None:
    asked: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append((self.path, self.headers["Authorization"], body["model"], body["max_tokens"]))
            self.send_response(status)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    (tmp_path / "key").write_text("key\n")
    monkeypatch.setenv(vllm_middleware.KEY_FILE_ENV, str(tmp_path / "key"))
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        if status == 200:
            vllm_middleware.ask_model(server.server_port, "faq")
        else:
            with pytest.raises(OSError, match="503"):
                vllm_middleware.ask_model(server.server_port, "faq")
        server.shutdown()
    assert asked == [("/v1/completions", "Bearer key", "faq", 1)]


OPEN = [("GET", "/health"), ("HEAD", "/health"), ("GET", "/metrics")]


def allowed(key: bytes | None, method: str, path: str, *headers: tuple[bytes, bytes], **scope: Any) -> bool:
    return vllm_middleware.is_allowed(
        {"type": "http", "method": method, "path": path, "headers": headers, **scope}, key
    )


def test_only_the_key_opens_other_routes_than_health_and_metrics() -> None:
    right = (b"Authorization", b"Bearer schl\xc3\xbcssel")
    key = "schlüssel".encode()
    for method, path in [("POST", "/invocations"), ("POST", "/v1/completions"), ("GET", "/"), ("OPTIONS", "/tokenize")]:
        assert allowed(None, method, path)
        assert allowed(key, method, path, right)
        assert not allowed(b"", method, path, (b"authorization", b"Bearer "))
        for wrong in ((), (right, right), ((b"authorization", b"Bearer x"),), ((b"x-api-key", key),)):
            assert not allowed(key, method, path, *wrong)
    for method, path in OPEN:
        assert allowed(key, method, path)
        assert allowed(key, method, f"/below{path}", root_path="/below")
        assert not allowed(key, "POST", path)
        assert not allowed(key, method, f"{path}/x")
        assert not allowed(key, method, f"/x{path}")


def test_a_preflight_request_needs_no_key_and_a_websocket_does() -> None:
    asks = (b"origin", b"http://app"), (b"access-control-request-method", b"POST")
    assert allowed(b"key", "OPTIONS", "/v1/completions", *asks)
    assert not allowed(b"key", "POST", "/v1/completions", *asks)
    assert not allowed(b"key", "GET", "/health", type="websocket")
    assert allowed(b"key", "GET", "/v1/realtime", (b"authorization", b"bearer key"), type="websocket")
    assert allowed(b"key", "", "", type="lifespan")


def test_a_websocket_without_the_key_gets_401_at_its_handshake() -> None:
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope: vllm_middleware.Scope = {"type": "websocket", "path": "/v1/realtime", "headers": []}
    asyncio.run(vllm_middleware.refuse_connection(scope | {"extensions": {"websocket.http.response": {}}}, send))
    assert [message["type"] for message in sent] == ["websocket.http.response.start", "websocket.http.response.body"]
    assert sent[0]["status"] == 401
    asyncio.run(vllm_middleware.refuse_connection(scope, send))
    assert sent[2]["type"] == "websocket.close"


def test_an_unreadable_key_refuses_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(vllm_middleware.KEY_FILE_ENV, "/nowhere")
    assert vllm_middleware.read_key() == b""


async def post(middleware: vllm_middleware.Gate, path: str, receive: vllm_middleware.Receive) -> int:
    """Return the answer's status."""
    statuses: list[int] = []

    async def send(message: dict[str, Any]) -> None:
        statuses.extend([message["status"]] if "status" in message else [])

    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "headers": [(vllm_middleware.ADMIN_HEADER, TOKEN.encode())],
    }
    await middleware(scope, receive, send)
    return statuses[0]


def replay(body: object) -> vllm_middleware.Receive:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}

    return receive


async def nowhere(message: dict[str, Any]) -> None:
    pass
