"""The answers of the HTTP API, for its OpenAPI document."""

from typing import Any, Literal

from pydantic import BaseModel

FinishReason = Literal["stop", "length"]
ChatFinishReason = Literal["stop", "length", "tool_calls"]


class ErrorDetail(BaseModel):
    message: str
    type: Literal["invalid_request_error", "server_error"]
    param: str | None
    code: str | None


class Error(BaseModel):
    error: ErrorDetail


class Health(BaseModel):
    status: Literal["loading", "ready", "failed"]


class ModelCard(BaseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    parent: str | None
    max_model_len: int | None
    kind: Literal["base", "adapter", "merged", "model"]
    digest: str | None


class ModelList(BaseModel):
    object: Literal["list"]
    data: list[ModelCard]


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TokenLogprob(BaseModel):
    token: str
    logprob: float
    bytes: list[int] | None


class ChosenLogprob(TokenLogprob):
    top_logprobs: list[TokenLogprob]


class ChatLogprobs(BaseModel):
    content: list[ChosenLogprob]
    refusal: None


class CalledFunction(BaseModel):
    name: str
    arguments: str


class ToolCall(BaseModel):
    id: str
    type: Literal["function"]
    function: CalledFunction


class AnswerMessage(BaseModel):
    role: Literal["assistant"]
    content: str | None
    tool_calls: list[ToolCall] | None = None


class ChatChoice(BaseModel):
    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: ChatFinishReason


class Answer(BaseModel):
    id: str
    created: int
    model: str
    usage: Usage


class ChatAnswer(Answer):
    object: Literal["chat.completion"]
    choices: list[ChatChoice]


class CompletionLogprobs(BaseModel):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason


class CompletionAnswer(Answer):
    object: Literal["text_completion"]
    choices: list[CompletionChoice]


ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": Error, "description": "The request can't be answered; the error says why, and which field."},
    "5XX": {"model": Error, "description": "The server can't answer now."},
}
STREAM: dict[str, Any] = {"text/event-stream": {"schema": {"type": "string"}}}
CHAT: dict[int | str, dict[str, Any]] = {
    200: {"model": ChatAnswer, "description": "The answer; with `stream` its chunks as events.", "content": STREAM},
    **ERRORS,
}
COMPLETION: dict[int | str, dict[str, Any]] = {
    200: {
        "model": CompletionAnswer,
        "description": "The answer; with `stream` its chunks as events.",
        "content": STREAM,
    },
    **ERRORS,
}
HEALTH: dict[int | str, dict[str, Any]] = {
    200: {"model": Health, "description": "Ready."},
    503: {"model": Health, "description": "Loading, or failed."},
    "4XX": ERRORS["4XX"],
}
