"""Read bodies of requests, from the connection to a validated object, within the limits of bounds.py.

The event loop only collects bytes (`read_body`). A worker thread then measures the structure of the text, parses it,
refuses text that is not Unicode, and validates it with pydantic (`parse_body`), because the time and the memory for
this grow with the body. `BodyRoute` does both for each route of FastAPI that has a body, and leaves the OpenAPI
document to FastAPI. The route's function is next.
"""

import json
import re
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError

from hone_server.protocol.bounds import (
    MAX_BODY_BYTES,
    MAX_JSON_DEPTH,
    MAX_PROMPT_VALUES,
    MAX_VALUES,
    check_counts,
    is_unicode,
)
from hone_server.protocol.errors import RETRY_SECONDS, ApiError
from hone_server.workers import MIN_LARGE_BYTES, run_in_thread

# This much of a body that is too large is read and discarded: a client that is still sending does not see an early
# answer.
MAX_DISCARDED_BYTES = 256 << 20
# Limit for all bodies together that are being received, or whose requests wait for their answers.
MAX_HELD_BYTES = 256 << 20
BRACKET_PATTERN = re.compile(r"[\[\]{}]")
SURROGATE_PATTERN = re.compile(r"\\u[dD][89a-fA-F]")
MAX_ERRORS = 100

Body = TypeVar("Body", bound=BaseModel)


class BodyRoute(APIRoute):
    """A route whose function takes the body, and optionally the request."""

    # The most prompts of one request.
    max_prompts = 1

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        if self.body_field is None:
            return super().get_route_handler()
        endpoint, most_prompts = self.endpoint, self.max_prompts
        body_name, request_name = self.body_field.name, self.dependant.request_param_name
        model: Any = self.body_field.field_info.annotation

        async def handle(request: Request) -> Response:
            with _HeldBytes() as held:
                content = await read_body(request, held)
                request.state.received = time.perf_counter()
                request.state.is_large = len(content) >= MIN_LARGE_BYTES
                body = await run_in_thread(parse_body, content, model, most_prompts, is_large=request.state.is_large)
                del content
                more = {request_name: request} if request_name else {}
                response: Response = await endpoint(**{body_name: body} | more)
                return response

        return handle


class _HeldBytes:
    """Counts the bytes of one body until its route's function returns, because it may wait long for a thread."""

    # Of all bodies together.
    total_bytes = 0

    def __init__(self) -> None:
        self._bytes = 0

    def __enter__(self) -> "_HeldBytes":
        return self

    def add_bytes(self, count: int) -> None:
        """Count more bytes. Raises ApiError 503 when all bodies together are too large."""
        self._bytes += count
        _HeldBytes.total_bytes += count
        if _HeldBytes.total_bytes > MAX_HELD_BYTES:
            message = f"requests of {MAX_HELD_BYTES >> 20} MiB are being processed; try again in {RETRY_SECONDS} s"
            raise ApiError(503, message, headers={"Retry-After": str(RETRY_SECONDS), "Connection": "close"})

    def __exit__(self, *_: object) -> None:
        _HeldBytes.total_bytes -= self._bytes


async def read_body(request: Request, held: _HeldBytes) -> bytes:
    """Return the body's bytes. Raises ApiError 400, 413, 415, and 503 when all bodies together are too large."""
    _check_headers(request)
    declared = int(request.headers.get("content-length") or 0)
    is_waiting = "expect" in request.headers  # the client waits for 100 Continue before it sends the body
    if declared > MAX_DISCARDED_BYTES or (declared > MAX_BODY_BYTES and is_waiting):
        raise _make_too_large_error(closes=True)
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > MAX_DISCARDED_BYTES:
            raise _make_too_large_error(closes=True)
        if size > MAX_BODY_BYTES or declared > MAX_BODY_BYTES:
            parts.clear()
            continue
        held.add_bytes(len(part))
        parts.append(part)
    if size > MAX_BODY_BYTES:
        raise _make_too_large_error()
    return b"".join(parts)


def parse_body(content: bytes, model: type[Body], most_prompts: int = 1) -> Body:
    """Return the validated body. Raises ApiError 400, or RequestValidationError for a value that does not fit."""
    value = parse_json(content, MAX_PROMPT_VALUES if "prompt" in model.model_fields else MAX_VALUES)
    check_counts(value, most_prompts)
    try:
        return model.model_validate(value)
    except ValidationError as error:
        errors: list[Any] = error.errors(include_url=False)[:MAX_ERRORS]
    raise RequestValidationError([{**one, "loc": ("body", *one["loc"])} for one in errors])


def parse_json(content: bytes, most_values: int) -> Any:
    """Return the value. Raises ApiError 400 for text that is no JSON, too deep, too large, or not Unicode."""
    if not content.strip():
        raise ApiError(400, "the body is empty; send a JSON object")
    try:
        text = content.decode(json.detect_encoding(content))
    except UnicodeDecodeError as error:
        raise ApiError(400, f"the body is not valid {error.encoding}: {error.reason} at byte {error.start}") from None
    check_structure(text, most_values)
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ApiError(400, f"the body is not JSON: {error.msg} at character {error.pos}") from None
    except ValueError as error:  # a number of thousands of digits
        raise ApiError(400, f"the body has a number that can't be read: {error}") from None
    except RecursionError:
        raise _make_too_deep_error("the body", None) from None
    if SURROGATE_PATTERN.search(text):
        _refuse_surrogates(value)
    return value


def _check_headers(request: Request) -> None:
    """Raise ApiError for a body that is not declared as JSON (400), or that is compressed (415)."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        found = f"the Content-Type is {kind!r}" if kind else "there is no Content-Type"
        raise ApiError(400, f"{found}; send the body as JSON with the header 'Content-Type: application/json'")
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise ApiError(415, f"the header Content-Encoding is {encoding!r}; send the body uncompressed, without it")


def _make_too_large_error(*, closes: bool = False) -> ApiError:
    message = f"the body is larger than {MAX_BODY_BYTES} bytes ({MAX_BODY_BYTES >> 20} MiB), the most that is taken"
    return ApiError(413, f"{message}; send less", headers={"Connection": "close"} if closes else None)


def check_structure(text: str, most_values: int) -> None:
    """Raise ApiError 400 when the text has too many values or is nested too deep, whether it is JSON or not."""
    pieces = text.replace("\\\\", "").replace('\\"', "").split('"', 2 * most_values)
    is_cut = len(pieces) > 2 * most_values
    values = depth = 0
    field = None
    for place, piece in enumerate(pieces[:-1] if is_cut else pieces):
        if place % 2:
            if depth == 1 and place + 1 < len(pieces) and pieces[place + 1].lstrip().startswith(":"):
                field = piece
            continue
        values += piece.count(",")
        for bracket in BRACKET_PATTERN.finditer(piece):
            opens = bracket[0] in "[{"
            depth += 1 if opens else -1
            values += opens
            if depth > MAX_JSON_DEPTH:
                raise _make_too_deep_error(field or "the body", field)
            if values > most_values:
                raise _make_too_many_values_error(most_values)
    if is_cut or values > most_values:
        raise _make_too_many_values_error(most_values)


def _make_too_many_values_error(most: int) -> ApiError:
    return ApiError(400, f"the body has more than {most} values (lists, objects and what they hold); send fewer")


def _make_too_deep_error(where: str, param: str | None) -> ApiError:
    message = f"{where}: lists and objects are nested more than {MAX_JSON_DEPTH} deep; flatten them"
    return ApiError(400, message, param=param)


def _refuse_surrogates(value: Any) -> None:
    """Raise ApiError 400 for the first text that has half of a surrogate pair, which is not Unicode."""
    todo: list[tuple[tuple[str, ...], Any]] = [((), value)]
    while todo:
        place, one = todo.pop()
        if isinstance(one, str) and not is_unicode(one):
            raise _make_not_unicode_error(place, "the text")
        if isinstance(one, dict):
            for key in one:
                if not is_unicode(key):
                    raise _make_not_unicode_error(place, "a key")
            todo += [((*place, key), inner) for key, inner in _reverse_text_pairs(one.items())]
        elif isinstance(one, list):
            todo += [((*place, str(index)), inner) for index, inner in _reverse_text_pairs(enumerate(one))]


def _reverse_text_pairs(pairs: Iterable[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Return the pairs that can hold text, the last first, so that the stack returns them in order."""
    return [pair for pair in pairs if isinstance(pair[1], str | dict | list)][::-1]


def _make_not_unicode_error(place: tuple[str, ...], what: str) -> ApiError:
    message = (
        f"{'.'.join(place) or 'the body'}: {what} has half of a surrogate pair (\\ud800 to \\udfff), which is not "
        "Unicode, as when an emoji is cut in two; cut text between characters"
    )
    return ApiError(400, message, param=place[0] if place else None)
