"""Errors of the HTTP API, in the shape that OpenAI's clients read."""

from collections.abc import Mapping
from typing import Any

RETRY_SECONDS = 2
# pydantic's names; its sentences speak of dictionaries and classes.
NOT_AN_OBJECT = frozenset({"dict_type", "model_attributes_type", "model_type"})


class ApiError(Exception):
    """Answered as `{"error": {message, type, param, code}}` with this HTTP status."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = headers

    def body(self) -> dict[str, Any]:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def invalid(error: Mapping[str, Any], content_type: str) -> ApiError:
    """What pydantic found first in a body of this content type."""
    place = [str(part) for part in error["loc"] if part not in ("body", "[key]")]
    kind = content_type.partition(";")[0].strip().lower()
    if not place and kind != "application/json" and not kind.endswith("+json"):
        found = f"the Content-Type is {kind!r}" if kind else "there is no Content-Type"
        return ApiError(400, f"{found}; send the body as JSON with the header 'Content-Type: application/json'")
    if error["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON: {error['ctx']['error']}")
    words = "must be a JSON object" if error["type"] in NOT_AN_OBJECT else error["msg"]
    return ApiError(400, f"{'.'.join(place) or 'the body'}: {words}", param=place[0] if place else None)


def too_busy(model: str, waiting: int) -> ApiError:
    message = f"{waiting} answers of model {model!r} already wait for a place; try again in {RETRY_SECONDS} s"
    return ApiError(429, message, code="too_many_requests", headers={"Retry-After": str(RETRY_SECONDS)})


def too_many(param: str, wanted: int, limit: int) -> ApiError:
    """More answers than may ever be under way."""
    message = f"the request asks for {wanted} answers, and a model takes {limit} at once at most; ask for fewer"
    return ApiError(400, message, param=param)


def unsupported(param: str, remedy: str = "leave it out") -> ApiError:
    """A parameter that would change the result and that this engine does not have."""
    message = f"the embedded engine does not support {param!r}; {remedy}"
    return ApiError(400, message, param=param, code="unsupported_parameter")


def context_exceeded(limit: int, prompt: int, wanted: int, param: str) -> ApiError:
    """Prompt and answer (in tokens) do not fit the model's context."""
    message = (
        f"this model's maximum context length is {limit} tokens, but {prompt + wanted} were asked for "
        f"({prompt} in the prompt, {wanted} in the answer); shorten one of them"
    )
    return ApiError(400, message, param=param, code="context_length_exceeded")
