"""Errors of the HTTP API, in the shape that OpenAI's clients read."""

from typing import Any


class ApiError(Exception):
    """Answered as `{"error": {message, type, param, code}}` with this HTTP status."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code

    def body(self) -> dict[str, Any]:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def unsupported(param: str) -> ApiError:
    """A parameter that would change the result and that this engine does not have."""
    message = f"the embedded engine does not support {param!r}; leave it out"
    return ApiError(400, message, param=param, code="unsupported_parameter")


def context_exceeded(limit: int, prompt: int, wanted: int, param: str) -> ApiError:
    """Prompt and answer (in tokens) do not fit the model's context."""
    message = (
        f"this model's maximum context length is {limit} tokens, but {prompt + wanted} were asked for "
        f"({prompt} in the prompt, {wanted} in the answer); shorten one of them"
    )
    return ApiError(400, message, param=param, code="context_length_exceeded")
