"""A client for an OpenAI-compatible engine: its list of models, and answers as they are generated."""

import json
import os
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
from hone_api.layout import API_KEY_ENV

from hone.errors import ClientError

Message = dict[str, str]


@dataclass(frozen=True)
class Model:
    """A model in an engine's list. `kind` is base, adapter, merged or model; None: the engine does not report it."""

    id: str
    kind: str | None = None


class Engine:
    """An engine at a base URL that ends in /v1. Every call raises ClientError when the engine fails."""

    def __init__(self, url: str, *, remedy: str) -> None:
        self.url = url.rstrip("/")
        self._remedy = remedy
        key = os.fsencode(os.environ.get(API_KEY_ENV, "")).strip()
        headers = {b"Authorization": b"Bearer " + key} if key else {}
        # An engine with a long queue may take minutes to its first token.
        self._http = httpx.Client(headers=headers, timeout=httpx.Timeout(10, read=600), trust_env=False)

    def models(self) -> list[Model]:
        """Return all models, in the engine's order."""
        try:
            answer = self._http.get(f"{self.url}/models")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self._unreachable(error) from error
        self._check(answer)
        try:
            return [Model(str(entry["id"]), _read_kind(entry)) for entry in answer.json()["data"]]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise ClientError(
                f"{self.url} is not an OpenAI-compatible API", "Give the base URL of one, ending in /v1."
            ) from None

    def answer(self, model: str, messages: list[Message]) -> Generator[str, None, None]:
        """Yield the answer to a conversation, in pieces as they come."""
        body = {"model": model, "messages": messages, "stream": True}
        try:
            with self._http.stream("POST", f"{self.url}/chat/completions", json=body) as answer:
                if answer.is_error:
                    answer.read()
                self._check(answer)
                yield from _read_pieces(answer.iter_lines())
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: Exception) -> ClientError:
        return ClientError(f"no engine answers at {self.url}: {error}", self._remedy)

    def _check(self, answer: httpx.Response) -> None:
        if answer.is_success:
            return
        raise ClientError(f"the engine refuses ({answer.status_code}): {_read_error(answer)}", _find_remedy(answer))


def choose_model(models: Sequence[Model], wanted: str | None) -> str:
    """Return the named model, else the first adapter, else the first. Raises ClientError if there is none."""
    names = [model.id for model in models]
    if wanted is not None and wanted not in names:
        raise ClientError(f"there is no model {wanted}", f"The engine has: {', '.join(names) or 'none'}")
    if not names:
        raise ClientError("the engine lists no model", "Look at the engine's log.")
    return wanted or next((model.id for model in models if model.kind == "adapter"), names[0])


def _read_kind(entry: dict[str, Any]) -> str | None:
    """Return the model's kind. vLLM reports none, and reports a parent only for adapters."""
    kind = entry.get("kind")
    return kind if isinstance(kind, str) and kind else "adapter" if entry.get("parent") else None


def _read_pieces(lines: Iterator[str]) -> Iterator[str]:
    for line in lines:
        field, _, data = line.partition(":")
        if field != "data":
            continue
        if data.strip() == "[DONE]":
            return
        event = _parse_event(data)
        if "error" in event:
            raise ClientError(f"the engine broke off: {_describe_error(event['error'])}", "Look at the engine's log.")
        yield from _find_texts(event)
    raise ClientError("the engine broke off in the middle of the answer", "Look at the engine's log, and ask again.")


def _parse_event(data: str) -> dict[str, Any]:
    try:
        event = json.loads(data)
    except (ValueError, RecursionError):
        event = None
    if isinstance(event, dict):
        return event
    raise ClientError(
        f"the engine sent an event that is no JSON object: {data.strip()[:80]}",
        "Check that the URL is that of an OpenAI-compatible API, with no proxy in between that changes answers.",
    )


def _find_texts(event: dict[str, Any]) -> Iterator[str]:
    """Yield the text in an event; an event of another form than OpenAI's has none."""
    choices = event.get("choices")
    for choice in choices if isinstance(choices, list) else []:
        delta = choice.get("delta") if isinstance(choice, dict) else None
        content = delta.get("content") if isinstance(delta, dict) else None
        if isinstance(content, str) and content:
            yield content


def _describe_error(error: Any) -> str:
    """Return the message of an error, which engines send as an object or as text."""
    message = error.get("message") if isinstance(error, dict) else error
    return str(message or "no reason given")


def _read_error(answer: httpx.Response) -> str:
    try:
        body = answer.json()
    except (ValueError, RecursionError):
        body = None
    error = body.get("error") if isinstance(body, dict) else None
    return _describe_error(error) if error else answer.reason_phrase or "no reason given"


def _find_remedy(answer: httpx.Response) -> str:
    if answer.status_code == 503:
        return "It is still loading or overloaded: try again in a moment."
    if answer.status_code == 401:
        return f"Put the engine's API key into the variable {API_KEY_ENV}."
    if answer.status_code == 429:
        return "Too many ask at the moment: try again soon."
    if answer.status_code == 404:
        return "See which models there are with /models, and check that the URL ends in /v1."
    return "Change what the message names."
