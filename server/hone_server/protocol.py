"""Requests of the HTTP API, as OpenAI has them. What would change the result and is not supported is refused."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from .errors import ApiError, unsupported

Token = Annotated[int, Field(ge=0)]
Bias = Annotated[float, Field(ge=-100, le=100)]
Stop = Annotated[str, StringConstraints(min_length=1)]
MAX_LOGPROBS = 20

# Values of unsupported parameters that ask for nothing; whatever else is refused by name.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "best_of": (None, 1),
    "function_call": (None, "none"),
    "functions": (None, []),
    "modalities": (None, ["text"]),
    "response_format": (None, {"type": "text"}),
    "suffix": (None, ""),
    "tool_choice": (None, "none", "auto"),
    "tools": (None, []),
}
REMEDIES = {
    "response_format": "only {'type': 'text'} is answered here; ask for the form in the prompt, or use engine vllm",
    "tools": "describe them in the prompt, or use engine vllm",
}
# These say something about the request and nothing about the answer.
IGNORED = frozenset(
    {"metadata", "parallel_tool_calls", "prompt_cache_key", "safety_identifier", "service_tier", "store", "user"}
)


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")

    include_usage: bool = False


def _documented(schema: dict[str, Any]) -> None:
    """What is taken beside the fields, for the OpenAPI document; all else is refused."""
    schema["properties"] |= {name: {"enum": list(values)} for name, values in NEUTRAL.items()}
    schema["properties"] |= {name: {"description": "Has no effect."} for name in sorted(IGNORED)}
    schema["additionalProperties"] = False


class GenerationRequest(BaseModel):
    """What both kinds of request share. Left out: the model's generation_config.json decides, then OpenAI's default."""

    model_config = ConfigDict(extra="allow", json_schema_extra=_documented)

    model: str
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    logit_bias: dict[Token, Bias] | None = None
    n: int | None = Field(None, ge=1, le=128)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Stop | list[Stop] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    ignore_eos: bool = False

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    def refuse_unsupported(self) -> None:
        """Raises ApiError for a parameter that is not supported and asks for something."""
        for name, value in (self.model_extra or {}).items():
            if name not in IGNORED and (name not in NEUTRAL or value not in NEUTRAL[name]):
                raise unsupported(name, *([REMEDIES[name]] if name in REMEDIES else []))
        if self.stream_options is not None and not self.stream:
            raise ApiError(400, "stream_options needs stream: true", param="stream_options")

    def wanted_logprobs(self) -> int | None:
        """How many likeliest tokens to tell beside each one; None for no log probabilities at all."""
        raise NotImplementedError

    @property
    def answers(self) -> int:
        """How many answers are wanted."""
        return self.n or 1


class TextPart(BaseModel):
    type: Literal["text"]
    text: str


class Message(BaseModel):
    """A message of a chat. Further keys, such as `name`, go to the chat template as they are."""

    model_config = ConfigDict(extra="allow")

    role: str
    content: str | list[TextPart]

    def for_template(self) -> dict[str, Any]:
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return self.model_dump() | {"content": content}


class ChatRequest(GenerationRequest):
    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)

    def refuse_unsupported(self) -> None:
        super().refuse_unsupported()
        if self.top_logprobs and not self.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs: true", param="top_logprobs")

    def wanted_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(GenerationRequest):
    prompt: str | list[Token] | list[str] | list[list[Token]]
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)

    def refuse_unsupported(self) -> None:
        super().refuse_unsupported()
        if self.echo and self.logprobs is not None:
            raise unsupported("logprobs", "leave it out together with echo: those of the prompt are not computed")

    def wanted_logprobs(self) -> int | None:
        return self.logprobs

    @property
    def answers(self) -> int:
        return super().answers * len(self.prompts())

    def prompts(self) -> list[str | list[int]]:
        """The prompts one by one, as text or as tokens."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if all(isinstance(part, int) for part in self.prompt):
            return [self.prompt]  # type: ignore[list-item]
        return list(self.prompt)  # type: ignore[arg-type]
