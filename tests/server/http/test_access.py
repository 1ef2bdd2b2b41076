"""Access: API keys, request ids, the log, and the bounded queue."""

import re
import signal
import string
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import httpx
import openai
import pytest
from hone_api.layout import ADMIN_HEADER
from hone_server.http.admin_routes import AdminAuthMiddleware
from hone_server.http.middleware import AccessMiddleware
from hone_server.http.routes import make_app
from hone_server.main import _read_api_key
from hone_server.vllm.middleware import is_allowed as gate_allows
from hypothesis import example, given
from hypothesis import strategies as st
from starlette.datastructures import Headers

KEY = "s3cret-of-the-test"
PROMPT = "a prompt that nobody shall read"


@pytest.fixture(scope="module")
def guarded(
    serve: Callable[..., AbstractContextManager[Any]], base_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    file = tmp_path_factory.mktemp("key") / "key"
    file.write_text(KEY + "\n")
    with serve(str(base_folder), "--api-key-file", str(file), "--max-waiting", "2") as server:
        yield server


def ask(server: Any, key: Any = KEY, **headers: Any) -> Any:
    body = {"model": "tiny-llama", "prompt": PROMPT, "max_tokens": 2}
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    return httpx.post(f"{server.url}/v1/completions", json=body, headers=headers, timeout=60)


@pytest.mark.parametrize("key", [None, "", "another", KEY + "x", KEY[:-1], "schlüssel"])
def test_without_the_key_nothing_is_answered(guarded: Any, key: Any) -> None:
    headers = {} if key is None else {"Authorization": f"Bearer {key}".strip().encode("latin-1")}
    for method, path in [("POST", "/v1/completions"), ("POST", "/v1/chat/completions"), ("GET", "/v1/models")]:
        answer = httpx.request(method, guarded.url + path, headers=headers, json={})
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.json()["error"]["code"] == "invalid_api_key"


def test_another_scheme_with_the_key_is_refused(guarded: Any) -> None:
    answer = httpx.get(f"{guarded.url}/v1/models", headers={"Authorization": f"Basic {KEY}"})
    assert answer.status_code == 401


def test_the_openai_client_gets_in_with_the_key_and_a_reason_without_it(guarded: Any) -> None:
    options = {"base_url": f"{guarded.url}/v1", "max_retries": 0}
    assert [model.id for model in openai.OpenAI(api_key=KEY, **options).models.list()] == ["tiny-llama"]
    with pytest.raises(openai.AuthenticationError, match="needs an API key"):
        openai.OpenAI(api_key="another", **options).models.list()


def test_without_the_key_every_route_is_401_but_health_and_metrics(guarded: Any) -> None:
    routes = {route.path for route in make_app(MagicMock(), 1).routes} | {"/v1/load_lora_adapter", "/nowhere"}
    assert {"/", "/docs", "/openapi.json", "/v1/models", "/v1/chat/completions"} < routes
    with httpx.Client(base_url=guarded.url) as client:
        for path in routes:
            for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"):
                is_open = path in ("/health", "/metrics") and method in ("GET", "HEAD")
                status = client.request(method, path.replace("{", "").replace("}", "")).status_code
                assert (status == 401) != is_open, (method, path, status)


def test_a_browsers_preflight_request_needs_no_key(guarded: Any) -> None:
    headers = {"Origin": "http://app", "Access-Control-Request-Method": "POST"}
    assert httpx.options(f"{guarded.url}/v1/chat/completions", headers=headers).status_code != 401


@pytest.mark.parametrize("path", ["/", "/docs", "/chat.js", "/openapi.json"])
def test_pages_take_the_key_as_a_password_and_the_api_does_not(guarded: Any, path: str) -> None:
    def status(path: Any, **options: Any) -> Any:
        return httpx.get(guarded.url + path, **options).status_code

    assert httpx.get(guarded.url + path).headers["www-authenticate"].startswith("Basic ")
    assert status(path, auth=("anybody", KEY)) == 200
    assert status(path, auth=("anybody", "another")) == status("/v1/models", auth=("anybody", KEY)) == 401
    assert status(path, headers={"Authorization": "Basic %%%"}) == 401
    assert status(path, headers={"Authorization": f"Bearer {KEY}"}) == 200


def test_a_request_id_is_taken_over_or_made(guarded: Any) -> None:
    assert ask(guarded, **{"X-Request-Id": "order-66/a"}).headers["x-request-id"] == "order-66/a"
    made = [ask(guarded, **{"X-Request-Id": given}).headers["x-request-id"] for given in ("", "a b", "x" * 129)]
    assert len(set(made)) == 3
    assert all(re.fullmatch("[0-9a-f]{32}", one) for one in made)
    assert ask(guarded, key="another", **{"X-Request-Id": "refused"}).headers["x-request-id"] == "refused"


def test_when_too_many_wait_a_request_is_asked_to_retry(guarded: Any, until: Callable[..., None]) -> None:
    options = {"base_url": f"{guarded.url}/v1", "api_key": KEY, "max_retries": 0, "timeout": 120}
    client = openai.OpenAI(**options)

    def answers(n: Any) -> Any:
        return client.completions.create(
            model="tiny-llama", prompt="hello", n=n, max_tokens=240, extra_body={"ignore_eos": True}
        )

    with ThreadPoolExecutor(2) as pool:
        full = pool.submit(answers, 64)
        until(lambda: guarded.running("tiny-llama") == 64)
        waiting = pool.submit(answers, 2)
        until(lambda: 'hone:num_requests_waiting{model_name="tiny-llama"} 2.0' in guarded.get("/metrics").text)
        for n in (1, 66):
            with pytest.raises(openai.RateLimitError) as error:
                answers(n)
        assert not full.done()
        assert int(error.value.response.headers["retry-after"]) > 0
        assert error.value.body["code"] == "too_many_requests"
        assert len(full.result().choices) == 64
        assert len(waiting.result().choices) == 2
    assert 'hone:requests_refused_total{model_name="tiny-llama"} 2.0' in guarded.get("/metrics").text
    assert len(answers(1).choices) == 1


def test_more_answers_than_a_model_can_have_are_refused_permanently(guarded: Any) -> None:
    body = {"model": "tiny-llama", "prompt": ["hello"] * 67, "max_tokens": 1}
    answer = httpx.post(f"{guarded.url}/v1/completions", json=body, headers={"Authorization": f"Bearer {KEY}"})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "prompt"
    assert "asks for 67 answers, and a model takes 66 at once" in answer.json()["error"]["message"]


def test_a_key_may_have_any_letters(
    serve: Callable[..., AbstractContextManager[Any]], base_folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "key"
    file.write_text("schlüssel")
    with serve(str(base_folder), "--api-key-file", str(file)) as server:
        for key, status in (("schlüssel", 200), ("schlussel", 401)):
            headers = {"Authorization": f"Bearer {key}".encode()}
            assert httpx.get(f"{server.url}/v1/models", headers=headers).status_code == status


def test_the_log_has_a_line_a_request_and_neither_keys_nor_prompts(
    serve: Callable[..., AbstractContextManager[Any]], base_folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "key"
    file.write_text(KEY)
    with serve(str(base_folder), "--api-key-file", str(file)) as server:
        ask(server, **{"X-Request-Id": "mine"})
        ask(server, key="wrong-" + KEY, **{"X-Request-Id": "theirs"})
        server.get("/v1/no%0Athing")
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(timeout=30)
        said = server.read_log()
    assert re.search(r"INFO mine POST /v1/completions 200 \d+\.\d+ s\n", said)
    assert re.search(r"INFO theirs POST /v1/completions 401 ", said)
    assert "GET /v1/no%0Athing 401" in said
    assert KEY not in said
    assert PROMPT not in said
    assert "/health" not in said


@pytest.mark.parametrize("content", [None, "", " \n"])
def test_a_key_file_without_a_key_keeps_the_server_from_starting(
    run_to_end: Callable[..., tuple[int, str]], base_folder: Path, tmp_path: Path, content: str | None
) -> None:
    file = tmp_path / "key"
    if content is not None:
        file.write_text(content)
    code, said = run_to_end(str(base_folder), "--api-key-file", str(file))
    assert code == 64
    assert str(file) in said


@given(
    key=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r\n"), min_size=1).filter(
        lambda key: key.strip(string.whitespace)
    )
)
@example(key="\u00a0")
@example(key="caf\u00e0")
@example(key="\u2005x\u0085")
def test_any_key_in_the_file_is_accepted(key: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Headers carry the key's bytes."""
    file = tmp_path_factory.getbasetemp() / "key"
    file.write_bytes(b" \t" + key.encode() + b"\r\n")
    bare = key.encode().strip()

    def is_allowed(value: bytes) -> bool:
        access = AccessMiddleware(None, _read_api_key(file))  # type: ignore[arg-type]
        return access._is_allowed("POST", "/v1/models", Headers(raw=[(b"authorization", value)]))

    assert is_allowed(b"Bearer " + bare)
    assert not is_allowed(b"Bearer " + bare + b"\xa0")
    assert not is_allowed(b"Bearer " + bare[1:])
    gate = {"type": "http", "path": "/v1/models", "method": "POST", "headers": [(b"authorization", b"Bearer " + bare)]}
    assert gate_allows(gate, bare)


@given(token=st.binary(min_size=1).filter(lambda token: token.strip() and not {0, 10, 13} & {*token}))
@example(token=b"\xc3\xa0")
@example(token=b"\x85")
def test_any_token_in_the_file_opens_the_admin_routes(token: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.getbasetemp() / "token"
    file.write_bytes(token + b"\n")
    gate = AdminAuthMiddleware(None, None, file)  # type: ignore[arg-type]
    header = ADMIN_HEADER.lower().encode()
    assert gate._has_token(Headers(raw=[(header, token.strip())]))
    assert not gate._has_token(Headers(raw=[(header, token.strip() + b"\xa0")]))
