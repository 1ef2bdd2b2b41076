"""Client of an engine's run-time API for adapters, as in vLLM. Uses the standard library only."""

import http.client
import json
from pathlib import Path
from typing import Any

from hone_api.layout import ADMIN_HEADER

from hone_server.vllm.middleware import LOAD, UNLOAD

LOOK_SECONDS = 5.0
# Long enough to load a large adapter, or to wait for a first answer behind a full queue.
WORK_SECONDS = 600.0


class Refused(Exception):
    """The engine answered with an error, whose message this has."""


class EngineApi:
    """Client of the engine in the same pod.

    Its methods raise Refused when the engine answers with an error, and OSError or http.client.HTTPException when it
    does not answer.
    """

    def __init__(self, port: int, token: str, key_file: Path | None) -> None:
        self._port = port
        self._token = token
        self._key_file = key_file
        self._key = self._read_key()

    def listed(self) -> dict[str, str | None]:
        """Return the models that the engine lists once it is up: by name, the path that each was loaded from."""
        self._ask("GET", "/health", timeout=LOOK_SECONDS)
        answer = self._ask("GET", "/v1/models", timeout=LOOK_SECONDS)
        try:
            return {str(model["id"]): model.get("root") for model in json.loads(answer)["data"]}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Refused(f"its /v1/models can't be read: {error!r}") from None

    def load(self, name: str, path: str, *, replace: bool) -> None:
        body = {"lora_name": name, "lora_path": path, "load_inplace": replace}
        self._ask("POST", LOAD, body, timeout=WORK_SECONDS)

    def unload(self, name: str) -> None:
        self._ask("POST", UNLOAD, {"lora_name": name}, timeout=WORK_SECONDS)

    def answer(self, name: str) -> None:
        """Let the model generate one token."""
        self._ask("POST", "/v1/completions", {"model": name, "prompt": "Hi", "max_tokens": 1}, timeout=WORK_SECONDS)

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None, *, timeout: float) -> str:
        status, words = self._send(method, path, body, timeout)
        if status == http.client.UNAUTHORIZED and (key := self._read_key()) != self._key:
            # The Secret has a new key, and the engine has restarted since.
            self._key = key
            status, words = self._send(method, path, body, timeout)
        if status != http.client.OK:
            raise Refused(f"{method} {path}: {status}: {_message(words)}")
        return words

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


def _message(words: str) -> str:
    """Return the message of an error in OpenAI's shape, or else the start of the body."""
    try:
        return str(json.loads(words)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return words.strip()[:500]
