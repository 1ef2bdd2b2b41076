"""The sidecar in front of SGLang and TGI: the requests that it refuses, hides and streams."""

import asyncio
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from hone_operator.engines.sglang import SglangEngine
from run_isolation import find_free_port
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

CLIENT = httpx.Client(trust_env=False, timeout=60)
KEY = "Key-of-the-Guard"
RIGHT = {"Authorization": f"Bearer {KEY}"}
# All routes of sglang 0.5.13.post1, sglang/srt/entrypoints/http_server.py, by whether clients may use them.
SGLANG_CLIENTS = """/ /health /health_generate /metrics /ping /model_info /get_model_info /generate /encode /classify
/invocations /vertex_generate /parse_function_call /separate_reasoning /v1/completions /v1/chat/completions
/v1/embeddings /v1/tokenize /v1/detokenize /v1/audio/transcriptions /v1/models /v1/models/org/name /v1/score
/v1/responses /v1/responses/id /v1/responses/id/cancel /v1/rerank /v1/messages /v1/messages/count_tokens /api/chat
/api/generate /api/tags /api/show"""
SGLANG_HIDDEN = """/server_info /get_server_info /get_load /set_internal_state /dumper/x /flush_cache
/add_external_corpus /remove_external_corpus /list_external_corpora /clear_hicache_storage_backend
/hicache/storage-backend/clear /hicache/storage-backend /start_profile /stop_profile /set_trace_level /freeze_gc
/start_expert_distribution_record /stop_expert_distribution_record /dump_expert_distribution_record
/update_weights_from_disk /init_weights_send_group_for_remote_instance /send_weights_to_remote_instance
/get_remote_instance_transfer_engine_info /remote_instance_transfer_engine_info /init_weights_update_group
/destroy_weights_update_group /update_weights_from_tensor /update_weights_from_distributed /update_weights_from_ipc
/update_weight_version /get_weights_by_name /release_memory_occupation /resume_memory_occupation /weights_checker
/slow_down /load_lora_adapter /load_lora_adapter_from_tensors /unload_lora_adapter /open_session /close_session
/configure_logging /abort_request /pause_generation /continue_generation /weight_version /get_weight_version /docs
/openapi.json /a_route_of_a_later_version /v1/../server_info /v1/./models /v1/%2e%2e/server_info //server_info"""
# All routes of TGI 3.3.5, router/src/server.rs. TGI's own key guards only those of the first line.
TGI = """POST:/ /generate /generate_stream /v1/chat/completions /v1/completions /vertex /invocations /tokenize
GET:/ /chat_tokenize /info /ping /v1/models /docs /docs/ /api-doc/openapi.json /v2 /v2/health/ready /v2/health/live"""


@contextmanager
def running(app: Any) -> Iterator[int]:
    """Yield the port of an application that runs in a thread."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    yield listener.getsockname()[1]
    server.should_exit = True
    thread.join(30)


@contextmanager
def guarding(engine: int, tmp_path: Path, *, key: bytes | None, routes: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield the URL of the guard, which runs as a process."""
    port = find_free_port()
    command = [sys.executable, "-m", "hone_server.key_guard", "--port", str(port), "--engine-port", str(engine)]
    if key is not None:
        (tmp_path / "key").write_bytes(key)
        command += ["--api-key-file", str(tmp_path / "key")]
    for route in routes:
        command += ["--route", route]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        while process.poll() is None:
            try:
                CLIENT.get(f"http://127.0.0.1:{port}/health")
                break
            except httpx.TransportError:
                time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


class Engine:
    """Answers every path with the request it got; `/v1/stream` continues until its client has left."""

    def __init__(self) -> None:
        self.left = threading.Event()
        self.asked: list[str] = []
        methods = ["GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"]
        self.app = Starlette(
            routes=[
                Route("/v1/stream", self.stream, methods=["POST"]),
                Route("/v1/wait", self.wait, methods=["POST"]),
                Route("/{path:path}", self.echo, methods=methods),
            ]
        )

    async def echo(self, request: Request) -> JSONResponse:
        self.asked.append(request.url.path)
        body = await request.body()
        told = {
            "path": request.scope["raw_path"].decode(),
            "query": request.url.query,
            "size": len(body),
            "method": request.method,
        }
        return JSONResponse(told | {"headers": dict(request.headers)}, 201, headers={"x-of-engine": "1"})

    async def stream(self, request: Request) -> StreamingResponse:
        async def parts() -> Any:
            try:
                for number in range(10_000):
                    yield f"data: {number}\n\n"
                    await asyncio.sleep(0.01)
            finally:
                self.left.set()

        return StreamingResponse(parts(), media_type="text/event-stream")

    async def wait(self, request: Request) -> JSONResponse:
        await request.body()
        while (await request.receive())["type"] != "http.disconnect":
            pass
        self.left.set()
        return JSONResponse({})


@pytest.fixture(scope="module")
def engine() -> Iterator[tuple[Engine, int]]:
    made = Engine()
    with running(made.app) as port:
        yield made, port


@pytest.fixture(scope="module")
def guarded(engine: tuple[Engine, int], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return a guard as for TGI: with a key, and no hidden routes."""
    with guarding(engine[1], tmp_path_factory.mktemp("guard"), key=KEY.encode() + b"\n") as url:
        yield url


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD", "PATCH"])
def test_without_the_key_all_routes_of_tgi_are_401(guarded: str, engine: tuple[Engine, int], method: str) -> None:
    engine[0].asked.clear()
    wrong = [
        {},
        {"Authorization": f"Bearer {KEY.lower()}"},
        {"Authorization": KEY},
        {"Authorization": "Bearer"},
        {"Authorization": f"Basic {KEY}"},
    ]
    for path in re.findall(r"(?:[A-Z]+:)?(/\S*)", TGI):
        for headers in wrong:
            answer = CLIENT.request(method, guarded + path, headers=headers)
            assert (answer.status_code, path) == (401, path)
    assert engine[0].asked == []
    for path in ("/health", "/metrics"):
        assert CLIENT.request("POST", guarded + path).status_code == 401
        assert CLIENT.get(guarded + path).status_code == 201


def test_two_keys_count_as_no_key(guarded: str) -> None:
    headers = [("Authorization", f"Bearer {KEY}"), ("Authorization", "Bearer other")]
    assert CLIENT.get(f"{guarded}/v1/models", headers=headers).status_code == 401


def test_a_browser_may_ask_whether_it_may_send_the_key(guarded: str) -> None:
    preflight = {"Origin": "http://app", "Access-Control-Request-Method": "POST"}
    told = CLIENT.options(f"{guarded}/v1/chat/completions", headers=preflight).json()
    assert (told["method"], told["headers"]["origin"]) == ("OPTIONS", "http://app")


def test_with_the_key_a_request_arrives_as_it_is_but_for_the_key(guarded: str) -> None:
    body = b"x" * 3_000_000
    answer = CLIENT.post(f"{guarded}/v1/a%2Fb?c=d&e=%20", content=body, headers=RIGHT | {"X-Mine": "1"})
    told = answer.json()
    assert (answer.status_code, answer.headers["x-of-engine"]) == (201, "1")
    assert (told["path"], told["query"], told["size"]) == ("/v1/a%2Fb", "c=d&e=%20", len(body))
    assert told["headers"]["x-mine"] == "1"
    assert "authorization" not in told["headers"]
    parts = (part for part in (b"ab", b"c"))
    assert CLIENT.post(f"{guarded}/v1/x", content=parts, headers=RIGHT).json()["size"] == 3
    assert CLIENT.get(f"{guarded}/v1/models", headers=RIGHT).json()["size"] == 0


@pytest.mark.parametrize("path", ["/v1/stream", "/v1/wait"])
def test_the_engine_learns_that_a_client_has_left(guarded: str, engine: tuple[Engine, int], path: str) -> None:
    engine[0].left.clear()
    if path == "/v1/stream":
        with CLIENT.stream("POST", guarded + path, json={}, headers=RIGHT) as answer:
            assert next(answer.iter_text()).startswith("data: 0")
    else:
        with pytest.raises(httpx.ReadTimeout):
            CLIENT.post(guarded + path, json={}, headers=RIGHT, timeout=0.3)
    assert engine[0].left.wait(60)


@pytest.mark.parametrize("key", [None, KEY.encode()])
def test_sglangs_routes_for_administrators_are_forwarded_to_nobody(
    engine: tuple[Engine, int], tmp_path: Path, key: bytes | None
) -> None:
    with guarding(engine[1], tmp_path, key=key, routes=SglangEngine.client_routes) as url:
        engine[0].asked.clear()
        for path in SGLANG_HIDDEN.split():
            for method in ("GET", "POST", "PUT"):
                assert raw_status(url, method, path, RIGHT) == 404, path
        assert engine[0].asked == []
        for path in SGLANG_CLIENTS.split():
            assert CLIENT.get(url + path, headers=RIGHT).status_code == 201
            if key:
                open_to_all = path in ("/health", "/metrics")
                assert CLIENT.get(url + path).status_code == (201 if open_to_all else 401), path


def test_an_engine_that_is_not_there_yet_is_answered_with_503(tmp_path: Path) -> None:
    port = find_free_port()
    with guarding(port, tmp_path, key=None) as url:
        answer = CLIENT.get(f"{url}/health")
        assert (answer.status_code, json.loads(answer.text)["error"]["code"]) == (503, "not_ready")


def test_an_empty_key_keeps_the_guard_from_starting(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(" \n")
    command = [sys.executable, "-m", "hone_server.key_guard", "--port", "1", "--api-key-file", str(tmp_path / "key")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 64
    assert "hone-guard: InvalidSpec: the Secret of spec.apiKeySecret holds an empty key" in done.stdout + done.stderr


def raw_status(url: str, method: str, path: str, headers: dict[str, str]) -> int:
    """Return the status for a path that no client library changes."""
    host, port = url.removeprefix("http://").split(":")
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    with socket.create_connection((host, int(port)), 30) as connection:
        connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        return int(connection.makefile("rb").readline().split()[1])


@pytest.mark.parametrize("at_the_end", [False, True])
def test_a_client_that_stalls_in_its_request_is_dropped(at_the_end: bool) -> None:
    """Also while the guard waits at its end for remaining connections."""
    port = find_free_port()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        code = f"""
import uvicorn
from hone_server.http import connections
from hone_server.key_guard import main
connections.BODY_SECONDS = 0
if {at_the_end}:
    connections.WatchingServer.on_tick = uvicorn.Server.on_tick
main(["--port", "{port}", "--engine-port", "{silent.getsockname()[1]}"])
"""
        with subprocess.Popen([sys.executable, "-c", code]) as guard, connect(port) as client:
            client.sendall(b"POST /generate HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{")
            silent.accept()
            if at_the_end:
                guard.terminate()
            assert client.recv(1 << 16) == b""
            guard.terminate()
            assert guard.wait(60) in (0, -signal.SIGTERM)


def connect(port: int) -> socket.socket:
    for _ in range(600):
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=60)
        except ConnectionRefusedError:
            time.sleep(0.1)
    raise AssertionError("the guard does not listen")
