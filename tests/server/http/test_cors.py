"""Web pages of other origins: their preflight requests pass without a key, their requests do not."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from hone_server.http.cors import add_cors_headers
from hone_server.http.middleware import AccessMiddleware
from starlette.responses import JSONResponse

ORIGIN = "http://app.example"
PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,x-stainless-os"}


def ask(origins: Any, method: Any, origin: Any, **headers: Any) -> Any:
    app = add_cors_headers(AccessMiddleware(JSONResponse({}), "key"), origins)

    async def send() -> Any:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://engine") as client:
            return await client.request(method, "/v1/chat/completions", headers={"Origin": origin, **headers})

    return asyncio.run(send())


@pytest.mark.parametrize("origins", [["*"], ["http://other.example", ORIGIN]])
def test_a_preflight_passes_without_the_key(origins: list[Any] | list[str]) -> None:
    answer = ask(origins, "OPTIONS", ORIGIN, **PREFLIGHT)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] in ("*", ORIGIN)
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert answer.headers["access-control-allow-headers"] == "authorization,x-stainless-os"
    assert "access-control-allow-credentials" not in answer.headers


def test_the_request_itself_needs_the_key_and_its_error_can_be_read() -> None:
    refused = ask(["*"], "POST", ORIGIN)
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, "*")
    answered = ask(["*"], "POST", ORIGIN, Authorization="Bearer key")
    assert (answered.status_code, answered.headers["access-control-allow-origin"]) == (200, "*")
    assert "x-request-id" in answered.headers["access-control-expose-headers"]


@pytest.mark.parametrize("origins", [[], ["https://app.example"], ["http://app.example:8080"]])
def test_other_origins_are_not_allowed(origins: list[Any] | list[str]) -> None:
    assert "access-control-allow-origin" not in ask(origins, "OPTIONS", ORIGIN, **PREFLIGHT).headers
    assert "access-control-allow-origin" not in ask(origins, "POST", ORIGIN, Authorization="Bearer key").headers


def test_the_server_allows_all_origins_by_default(
    server: Any, run_to_end: Callable[..., tuple[int, str]], base_folder: Path
) -> None:
    headers = {"Origin": ORIGIN, **PREFLIGHT}
    answer = httpx.options(f"{server.url}/v1/chat/completions", headers=headers)
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "*")
    code, said = run_to_end(str(base_folder), "--allowed-origins", "http://app.example/path")
    assert code != 0
    assert "a JSON list of origins" in said
