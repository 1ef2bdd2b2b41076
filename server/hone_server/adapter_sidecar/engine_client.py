"""Client of an engine's run-time API for adapters, as in vLLM. Uses the standard library only."""

import http.client
import json
from pathlib import Path
from typing import Any

from hone_api.layout import ADMIN_HEADER

from hone_server.vllm.middleware import LOAD_PATH, UNLOAD_PATH

LIST_TIMEOUT_SECONDS = 5.0
# Long enough to load a large adapter, or to wait for a first answer behind a full queue.
LOAD_TIMEOUT_SECONDS = 600.0


class EngineRefusedError(Exception):
    """The engine answered with an error, whose message this has."""


class EngineClient:
    """Client of the engine in the same pod.

    Its methods raise EngineRefusedError when the engine answers with an error, and OSError or http.client.HTTPException
    when it does not answer.
    """

    def __init__(self, port: int, token: str, key_file: Path | None) -> None:
        self._port = port
        self._token = token
        self._key_file = key_file
        self._key = self._read_key()

    def list_models(self) -> dict[str, str | None]:
        """Return the models that the engine lists once it is up: by name, the path that each was loaded from."""
        self._request("GET", "/health", timeout=LIST_TIMEOUT_SECONDS)
        answer = self._request("GET", "/v1/models", timeout=LIST_TIMEOUT_SECONDS)
        try:
            return {str(model["id"]): model.get("root") for model in json.loads(answer)["data"]}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise EngineRefusedError(f"its /v1/models can't be read: {error!r}") from None

    def load_adapter(self, name: str, path: str, *, replace: bool) -> None:
        body = {"lora_name": name, "lora_path": path, "load_inplace": replace}
        self._request("POST", LOAD_PATH, body, timeout=LOAD_TIMEOUT_SECONDS)

    def unload_adapter(self, name: str) -> None:
        self._request("POST", UNLOAD_PATH, {"lora_name": name}, timeout=LOAD_TIMEOUT_SECONDS)

    def generate_one_token(self, name: str) -> None:
        """Let the model generate one token."""
        self._request(
            "POST", "/v1/completions", {"model": name, "prompt": "Hi", "max_tokens": 1}, timeout=LOAD_TIMEOUT_SECONDS
        )

    def _request(self, method: str, path: str, body: dict[str, Any] | None = None, *, timeout: float) -> str:
        status, text = self._send(method, path, body, timeout)
        if status == http.client.UNAUTHORIZED and (key := self._read_key()) != self._key:
            # The Secret has a new key, and the engine has restarted since.
            self._key = key
            status, text = self._send(method, path, body, timeout)
        if status != http.client.OK:
            raise EngineRefusedError(f"{method} {path}: {status}: {_read_error_message(text)}")
        return text

    def _send(self, method: str, path: str, body: dict[str, Any] | None, timeout: float) -> tuple[int, str]:
        headers: dict[str, str | bytes] = {"Content-Type": "application/json", ADMIN_HEADER: self._token}
        if self._key:
            headers["Authorization"] = b"Bearer " + self._key
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=timeout)
        try:
            connection.request(method, path, json.dumps(body) if body else None, headers)
            response = connection.getresponse()
            return response.status, response.read().decode(errors="replace")
        finally:
            connection.close()

    def _read_key(self) -> bytes | None:
        return self._key_file.read_bytes().strip() if self._key_file else None


def _read_error_message(body: str) -> str:
    """Return the message of an error in OpenAI's shape, or else the start of the body."""
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return body.strip()[:500]
