"""Web pages can read the refusals of vLLM's middleware and of the guard of SGLang and TGI."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hone_server.key_guard import KeyGuard
from hone_server.vllm import middleware as vllm_middleware
from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route

KEY = {"Authorization": "Bearer k"}
APP = "https://app.example"
ALLOW = "access-control-allow-origin"


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "key").write_text("k")
    monkeypatch.setenv(vllm_middleware.KEY_FILE_ENV, str(tmp_path / "key"))
    monkeypatch.delenv(vllm_middleware.TOKEN_FILE_ENV, raising=False)
    monkeypatch.setattr(vllm_middleware, "DRAIN_FILE", tmp_path / "draining")


def vllm(origins: list[str], *, credentials: bool = False, asked: list[str] | None = None) -> Any:
    """Return the middlewares in the order in which vLLM's `build_app` adds them: the last one is the outermost."""
    seen: list[str] = [] if asked is None else asked

    async def route(request: Any) -> PlainTextResponse:
        seen.append(request.url.path)
        return PlainTextResponse("ok")

    paths = ["/v1/models", "/v1/load_lora_adapter", "/tokenize"]
    app = Starlette(routes=[Route(path, route, methods=["GET", "POST"]) for path in paths])
    app.add_middleware(
        CORSMiddleware,
        allow_origins=origins,
        allow_credentials=credentials,
        allow_methods=["*"],
        allow_headers=["*"],
    )
    app.add_middleware(vllm_middleware.Gate)
    return app


def ask(app: Any, method: str, path: str, **headers: str) -> httpx.Response:
    async def send() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://engine") as client:
            return await client.request(method, path, headers={"Origin": APP, **headers})

    return asyncio.run(send())


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/v1/models", {}, 401),
        ("POST", "/tokenize", {"Authorization": "Bearer other"}, 401),
        ("PUT", "/no/such/route", {}, 401),
        ("POST", "/v1/load_lora_adapter", {}, 401),
        ("POST", "/v1/load_lora_adapter", KEY, 404),
    ],
)
@pytest.mark.parametrize("origins", [["*"], [APP], ["https://other.example"], []])
@pytest.mark.parametrize("credentials", [False, True])
def test_a_refusal_of_the_gate_can_be_read_where_an_answer_can(
    method: str, path: str, headers: dict[str, str], status: int, origins: list[str], credentials: bool
) -> None:
    asked: list[str] = []
    app = vllm(origins, credentials=credentials, asked=asked)
    answered = ask(app, "GET", "/v1/models", **KEY)
    assert answered.status_code == 200
    asked.clear()
    refused = ask(app, method, path, **headers)
    assert refused.status_code == status
    assert (ALLOW in refused.headers) == (ALLOW in answered.headers)
    assert refused.headers.get(ALLOW) in (None, "*", APP)
    assert refused.headers.get("access-control-allow-credentials") == answered.headers.get(
        "access-control-allow-credentials"
    )
    assert asked == []


@pytest.mark.parametrize("path", ["/v1/models", "/v1/load_lora_adapter", "/v1/no_such_route"])
def test_a_browsers_question_has_the_same_answer_for_each_route(path: str) -> None:
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    answer = ask(vllm(["*"]), "OPTIONS", path, **asks)
    assert (answer.status_code, answer.headers[ALLOW]) == (200, "*")


def test_clients_other_than_browsers_get_no_such_headers() -> None:
    async def send() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(vllm(["*"])), base_url="http://engine") as client:
            return await client.get("/v1/models")

    assert ALLOW not in asyncio.run(send()).headers


class Broken(httpx.AsyncBaseTransport):
    """An engine that does not exist, or ends its answer early."""

    def __init__(self, error: type[httpx.RequestError]) -> None:
        self._error = error

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        raise self._error("x")


def guarded() -> Iterator[Any]:
    for error, status in ((httpx.ConnectError, 503), (httpx.ReadError, 502)):
        client = httpx.AsyncClient(transport=Broken(error), base_url="http://127.0.0.1")
        guard = KeyGuard(client, b"k", ("/v1/", "/health"))
        yield pytest.param(guard, "/v1/models", KEY, status, id=str(status))
    yield pytest.param(guard, "/v1/models", {}, 401, id="401")
    yield pytest.param(guard, "/flush_cache", KEY, 404, id="404")


@pytest.mark.parametrize(("guard", "path", "headers", "status"), list(guarded()))
def test_the_guards_own_answers_can_be_read_by_any_page(
    guard: KeyGuard, path: str, headers: dict[str, str], status: int
) -> None:
    refused = ask(guard, "POST", path, **headers)
    assert (refused.status_code, refused.headers[ALLOW]) == (status, "*")
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,x-a"}
    allowed = ask(guard, "OPTIONS", path, **asks)
    assert (allowed.status_code, allowed.headers[ALLOW]) == (200, "*")
    assert allowed.headers["access-control-allow-headers"] == "authorization,x-a"
