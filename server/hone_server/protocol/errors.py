"""Errors of the HTTP API, in the shape that OpenAI's clients read."""

import logging
from collections.abc import Mapping
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger("hone_server")

RETRY_SECONDS = 2
# pydantic's names of errors whose messages mention dictionaries and classes.
NOT_AN_OBJECT_ERRORS = frozenset({"dict_type", "model_attributes_type", "model_type"})
# The text that a message quotes can be as long as the request.
MAX_MESSAGE_CHARACTERS = 2000


class ApiError(Exception):
    """An error that is answered as `{"error": {message, type, param, code}}` with this HTTP status."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        message = shorten_text(message, MAX_MESSAGE_CHARACTERS)
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = None if param is None else shorten_text(param, MAX_MESSAGE_CHARACTERS)
        self.code = code
        self.headers = headers

    def make_body(self) -> dict[str, Any]:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def make_validation_error(error: Mapping[str, Any]) -> ApiError:
    """Return the error for the first fault that pydantic found in a body."""
    place = [str(part) for part in error["loc"] if part not in ("body", "[key]")]
    if place[:1] == ["response_format"]:
        del place[1:2]  # pydantic's name for the alternative of the union
    text = "must be a JSON object" if error["type"] in NOT_AN_OBJECT_ERRORS else error["msg"]
    return ApiError(400, f"{'.'.join(place) or 'the body'}: {text}", param=place[0] if place else None)


def shorten_text(text: str, characters: int) -> str:
    """Return the text; if it is longer than this, without its middle."""
    if len(text) <= characters:
        return text
    half = characters // 2
    return f"{text[:half]} … {text[-half:]}"


class InternalErrorMiddleware:
    """Answers 500 for any exception of the application, on a connection that stays usable for the next request.

    Starlette's own handler raises the exception again after its answer. Then uvicorn closes the connection, and a proxy
    that shares it between clients fails another client's request. This middleware is inside Starlette's handler.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_started = False

        async def send_observed(message: Message) -> None:
            nonlocal has_started
            has_started = True
            await send(message)

        try:
            await self._app(scope, receive, send_observed)
        except ClientDisconnect:
            log.debug("a client left while it sent its request")
        except Exception as error:
            if has_started or scope["type"] != "http":
                raise  # a partial answer must end with its connection
            log.exception("%s %r failed", scope["method"], scope["path"])
            failed = make_internal_error(error)
            await JSONResponse(failed.make_body(), failed.status)(scope, receive, send)


def make_internal_error(error: Exception) -> ApiError:
    """Return the error for an unexpected failure."""
    return ApiError(500, f"internal error: {type(error).__name__}; the server's log has the details")


def make_busy_error(model: str, waiting: int) -> ApiError:
    message = f"{waiting} answers of model {model!r} already wait for a place; try again in {RETRY_SECONDS} s"
    return ApiError(429, message, code="too_many_requests", headers={"Retry-After": str(RETRY_SECONDS)})


def make_too_many_error(param: str, answers: int, limit: int) -> ApiError:
    """Return the error for more answers than a model can have at once."""
    message = f"the request asks for {answers} answers, and a model takes {limit} at once at most; ask for fewer"
    return ApiError(400, message, param=param)


def make_unsupported_error(param: str, remedy: str = "leave it out") -> ApiError:
    """Return the error for a parameter that would change the result and that this engine does not support."""
    message = f"the embedded engine does not support {param!r}; {remedy}"
    return ApiError(400, message, param=param, code="unsupported_parameter")


def make_context_error(limit: int, prompt: int, answer: int, param: str, *, at_least: bool = False) -> ApiError:
    """Return the error for a prompt and answer (in tokens) that do not fit the model's context.

    at_least: not all of the prompt was counted.
    """
    few = "at least " if at_least else ""
    message = (
        f"this model's maximum context length is {limit} tokens, but {few}{prompt + answer} were asked for "
        f"({few}{prompt} in the prompt, {answer} in the answer); shorten one of them"
    )
    return ApiError(400, message, param=param, code="context_length_exceeded")


def make_prompt_length_error(characters: int, most: int, limit: int, longest_token: int, param: str) -> ApiError:
    """Return the error for a prompt with too many characters to fit, for any tokenization."""
    message = (
        f"the prompt has {characters} characters, and this model takes {most} at most: its maximum context length is "
        f"{limit} tokens, and its longest token has {longest_token} characters; shorten the prompt"
    )
    return ApiError(400, message, param=param, code="context_length_exceeded")
