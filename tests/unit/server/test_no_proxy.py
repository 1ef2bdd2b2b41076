"""Loopback and pod traffic never goes through a proxy that the environment names, and no key leaves by one."""

import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hone.engine import Engine
from hone.errors import ClientError
from hone_server.adapter_sidecar.engine_client import EngineClient, EngineRefusedError
from hone_server.vllm import middleware as vllm_middleware

KEY = "not-a-secret"
PROXIES = [
    {},
    {"HTTP_PROXY": "{}"},
    {"http_proxy": "{}"},
    {"ALL_PROXY": "{}"},
    {"all_proxy": "{}"},
    {"HTTPS_PROXY": "{}", "https_proxy": "{}"},
    {"HTTP_PROXY": "{}", "NO_PROXY": ".svc,.cluster.local,10.0.0.0/8"},
    {"http_proxy": "{}", "no_proxy": "127.0.0.1,localhost"},
]


class Recorder:
    """A server that keeps the requests it gets, and answers each with one status."""

    def __init__(self, status: int, location: str = "") -> None:
        self.seen = seen = list[tuple[str, str | None]]()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                seen.append((self.path, self.headers.get("Authorization")))
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self.send_response(status)
                if location:
                    self.send_header("Location", location)
                self.send_header("Content-Length", "12")
                self.end_headers()
                self.wfile.write(b'{"data": []}')

            do_POST = do_CONNECT = do_GET

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def proxy() -> Iterator[Recorder]:
    recorder = Recorder(403)
    yield recorder
    recorder.close()


@pytest.fixture
def engine() -> Iterator[Recorder]:
    recorder = Recorder(200)
    yield recorder
    recorder.close()


@pytest.fixture(params=PROXIES, ids=lambda names: "+".join(names) or "none")
def behind_proxy(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, proxy: Recorder) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name, value in request.param.items():
        monkeypatch.setenv(name, value.format(f"http://127.0.0.1:{proxy.port}"))


@pytest.mark.usefixtures("behind_proxy")
def test_requests_to_an_engine_on_loopback_use_no_proxy(
    proxy: Recorder, engine: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key_file = tmp_path / "key"
    key_file.write_text(KEY)
    monkeypatch.setenv(vllm_middleware.KEY_FILE_ENV, str(key_file))
    monkeypatch.setenv("HONE_API_KEY", KEY)
    vllm_middleware.ask_model(engine.port, "m")
    EngineClient(engine.port, "token", key_file).list_models()
    Engine(f"http://127.0.0.1:{engine.port}/v1", remedy="").models()
    assert [path for path, _ in engine.seen] == ["/v1/completions", "/health", "/v1/models", "/v1/models"]
    assert {key for _, key in engine.seen} == {f"Bearer {KEY}"}
    assert proxy.seen == []


def test_no_redirect_takes_a_key_elsewhere(engine: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key_file = tmp_path / "key"
    key_file.write_text(KEY)
    monkeypatch.setenv(vllm_middleware.KEY_FILE_ENV, str(key_file))
    monkeypatch.setenv("HONE_API_KEY", KEY)
    for status in (301, 302, 303, 307, 308):
        redirecting = Recorder(status, f"http://127.0.0.1:{engine.port}/elsewhere")
        with pytest.raises(OSError, match=str(status)):
            vllm_middleware.ask_model(redirecting.port, "m")
        with pytest.raises(EngineRefusedError, match=str(status)):
            EngineClient(redirecting.port, "token", key_file).list_models()
        with suppress(ClientError):
            Engine(f"http://127.0.0.1:{redirecting.port}/v1", remedy="").models()
        redirecting.close()
    assert engine.seen == []


@pytest.mark.parametrize("key", ["caf\u00e0", "\u00a0\u00e9\u00a0", "\u5bc6\u94a5"])
def test_a_key_reaches_the_engine_as_its_bytes(
    engine: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    key_file = tmp_path / "key"
    key_file.write_bytes(key.encode() + b"\n")
    monkeypatch.setenv(vllm_middleware.KEY_FILE_ENV, str(key_file))
    monkeypatch.setenv("HONE_API_KEY", key)
    vllm_middleware.ask_model(engine.port, "m")
    EngineClient(engine.port, "token", key_file).list_models()
    Engine(f"http://127.0.0.1:{engine.port}/v1", remedy="").models()
    assert len(engine.seen) == 4
    assert {str(given).encode("latin-1") for _, given in engine.seen} == {b"Bearer " + key.encode()}
