"""An answer that fails gives the client the same error, streamed or not, at any time."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hone_server.engine.continuous_batching import EngineError, GuidanceError, TokenBatch
from inprocess import Service, served_in_thread


@pytest.fixture(scope="module")
def served(tokenizer_maker: Any) -> Iterator[tuple[Service, str]]:
    service = Service(tokenizer_maker())
    with served_in_thread(service) as (host, port, _):
        yield service, f"http://{host}:{port}"


@pytest.mark.parametrize("tokens", [0, 2])
@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("route", ["chat/completions", "completions"])
@pytest.mark.parametrize(
    ("failure", "status", "kind", "code"),
    [
        (GuidanceError("too complex"), 400, "invalid_request_error", None),
        (EngineError("out of memory"), 500, "server_error", "engine_error"),
        (KeyError("x"), 500, "server_error", None),
    ],
)
def test_a_failure_is_the_same_error_streamed_or_not(
    served: tuple[Service, str],
    monkeypatch: pytest.MonkeyPatch,
    failure: Exception,
    status: int,
    kind: str,
    code: str | None,
    route: str,
    n: int,
    tokens: int,
) -> None:
    async def fail(*_: Any, **__: Any) -> Any:
        for _ in range(tokens):
            yield TokenBatch([10], is_last=False)
        raise failure

    service, url = served
    monkeypatch.setattr(service.only.handle, "generate", fail, raising=False)
    body = {"model": "m", "n": n, "prompt": "q", "messages": [{"role": "user", "content": "q"}]}
    body.pop("prompt" if route.startswith("chat") else "messages")
    whole = httpx.post(f"{url}/v1/{route}", json=body, timeout=30)
    streamed = httpx.post(f"{url}/v1/{route}", json={**body, "stream": True}, timeout=30)
    lines = [line.removeprefix("data: ") for line in streamed.text.splitlines() if line]
    assert whole.status_code == status
    assert (whole.json()["error"]["type"], whole.json()["error"]["code"]) == (kind, code)
    assert lines[-1] == "[DONE]"
    assert json.loads(lines[-2]) == whole.json()


@pytest.mark.parametrize("before", ["", "/v1/v1", "/", "//v1", "/api/v1", "/openai"])
@pytest.mark.parametrize("route", ["chat/completions", "completions"])
@pytest.mark.parametrize("after", ["", "/"])
def test_a_wrong_base_url_is_told_the_right_route(
    served: tuple[Service, str], before: str, route: str, after: str
) -> None:
    answer = httpx.post(f"{served[1]}{before}/{route}{after}", json={})
    assert answer.status_code == 404
    assert f"; use /v1/{route}, " in answer.json()["error"]["message"]


def test_routes_that_the_engine_lacks_are_refused_with_an_alternative(served: tuple[Service, str]) -> None:
    for route in ("embeddings", "responses"):
        answer = httpx.post(f"{served[1]}/v1/{route}", json={"model": "m", "input": "x"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
        assert "engine vllm" in answer.json()["error"]["message"]
