"""Requests of the HTTP API, as in OpenAI. Parameters that would change the result and are not supported are refused.

In: the JSON value of bodies.py. Out: a ChatRequest or CompletionRequest, for http/routes.py. Parameters that this
engine lacks are accepted if their value has no effect (NEUTRAL, IGNORED), and else refused by name, with a remedy.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
    model_validator,
)

from hone_server.protocol.errors import ApiError, make_unsupported_error
from hone_server.protocol.functions import MAX_TOOLS, ResponseFormat, Tool, ToolChoice, check_tool_choice
from hone_server.protocol.messages import Message, describe_json_type, validate_explained

Token = Annotated[int, Field(ge=0)]
Bias = Annotated[float, Field(ge=-100, le=100)]
MAX_LOGPROBS = 20


class _FirstFault(FailFast):
    """Ends the validation of a list at its first fault; there could be as many as the body has entries."""

    __hash__ = object.__hash__  # a union needs it


FIRST_FAULT = _FirstFault()

# Values of unsupported parameters that have no effect, like null; every other value is refused by name.
NEUTRAL_VALUES: dict[str, tuple[Any, ...]] = {
    "add_generation_prompt": (True,),
    "allowed_token_ids": ([],),
    "bad_words": ([],),
    "best_of": (1,),
    "chat_template_kwargs": ({},),
    "continue_final_message": (False,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "include_stop_str_in_output": (False,),
    "length_penalty": (1,),
    "min_p": (0,),
    "min_tokens": (0,),
    "modalities": (["text"],),
    "priority": (0,),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "stop_token_ids": ([],),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "use_beam_search": (False,),
    "verbosity": ("medium",),
}
# Names of parameters in other servers and APIs, by the name in this one.
OTHER_NAMES = {
    "max_tokens": "max_completion_tokens max_new_tokens max_output_tokens max_length num_predict n_predict",
    "stop": "stop_sequences stop_words",
    "n": "best_of num_return_sequences candidate_count",
    "response_format": "guided_json guided_choice guided_regex guided_grammar structured_outputs format grammar "
    "json_schema",
    "repetition_penalty": "repeat_penalty",
    "seed": "random_seed",
}
REMEDIES = {other: f"use {name}" for name, others in OTHER_NAMES.items() for other in others.split()} | {
    "functions": "give them as tools",
    "function_call": "use tools and tool_choice",
}
CHAT_REMEDIES = dict.fromkeys(("prompt", "suffix", "echo"), "use /v1/completions, or leave it out") | {
    "input": "use messages",
    "instructions": "use messages, with one of role system",
    "system": "use messages, with one of role system",
    "prompt_logprobs": "use /v1/completions with echo and logprobs",
}
COMPLETION_REMEDIES = dict.fromkeys(
    ("messages", "tools", "tool_choice", "functions", "function_call"), "use /v1/chat/completions"
) | {
    "input": "use prompt",
    "top_logprobs": "use logprobs, which in completions is their number",
    "prompt_logprobs": "use echo and logprobs",
}
# These describe the request and do not change the answer.
IGNORED_PARAMETERS = frozenset(
    "metadata parallel_tool_calls prompt_cache_key prompt_cache_retention request_id safety_identifier service_tier "
    "store user".split()
)


def explain_stop_error(value: Any) -> str:
    """Return why this is no value of `stop`."""
    if isinstance(value, list):
        place = next((place for place, one in enumerate(value) if not isinstance(one, str)), None)
        if place is not None:
            return f"must be a text or a list of texts; item {place} is {describe_json_type(value[place])}"
    return f"must be a text or a list of texts; got {describe_json_type(value)}"


def explain_prompt_error(value: Any) -> str:
    """Return why this is no prompt."""
    accepted = "must be a text, a list of texts, a list of tokens or a list of lists of tokens"
    if not isinstance(value, list):
        return f"{accepted}; got {describe_json_type(value)}"
    kinds = {type(one) for one in value}
    if len(kinds) > 1:
        return f"{accepted}; this list holds {' and '.join(sorted({describe_json_type(one) for one in value}))}"
    lists = value if kinds == {list} else [value]
    for place, tokens in enumerate(lists):
        where = f" of list {place}" if kinds == {list} else ""
        for number, token in enumerate(tokens):
            if isinstance(token, bool) or not isinstance(token, int):
                return f"{accepted}; item {number}{where} is {describe_json_type(token)}"
            if token < 0:
                return f"item {number}{where} is {token}, and a token is a whole number from 0"
    return accepted


def explain_logprobs_error(value: Any) -> str:
    """Return why this is no value of a chat's `logprobs`, which in completions is a number."""
    found = describe_json_type(value)
    return f"is true or false in a chat, and top_logprobs is the number of likeliest tokens; got {found}"


def _validate_logprobs(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    return validate_explained(value, handler, explain_logprobs_error)


def _validate_stop(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    return validate_explained(value, handler, explain_stop_error)


def _validate_prompt(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
    return validate_explained(value, handler, explain_prompt_error)


class StreamOptions(BaseModel):
    """`continuous_usage_stats` is vLLM's, and puts the usage in each chunk; `include_obfuscation` has no effect."""

    model_config = ConfigDict(extra="allow", json_schema_extra={"additionalProperties": False})

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None


def _document_parameters(schema: dict[str, Any], request: type["GenerationRequest"]) -> None:
    """Add the parameters that are accepted next to the fields to the OpenAPI document; all others are refused."""
    neutral = {name: {"enum": [None, *values]} for name, values in request.neutral.items()}
    schema["properties"] = neutral | schema["properties"]
    schema["properties"] |= {name: {"description": "Has no effect."} for name in sorted(IGNORED_PARAMETERS)}
    schema["additionalProperties"] = False


class GenerationRequest(BaseModel):
    """What both kinds of request share. Left out: the model's generation_config.json decides, then OpenAI's default."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False, json_schema_extra=_document_parameters)

    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = NEUTRAL_VALUES
    remedies: ClassVar[Mapping[str, str]] = REMEDIES
    # The field that every request of this kind has.
    prompt_field: ClassVar[str]

    model: str
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    logit_bias: dict[Token, Bias] | None = None
    n: int | None = Field(None, ge=1, le=128)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Annotated[str | list[str] | None, WrapValidator(_validate_stop)] = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    ignore_eos: bool | None = None
    response_format: ResponseFormat | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse_other_route(cls, value: Any) -> Any:
        """Raise ApiError for the prompt of another route, because pydantic's 'missing' would not name that route."""
        if isinstance(value, dict) and value.get(cls.prompt_field) is None:
            for name in ("messages", "prompt", "input"):
                if value.get(name) is not None and name in cls.remedies:
                    raise make_unsupported_error(name, cls.remedies[name])
        return value

    @property
    def stop_strings(self) -> list[str]:
        """Return the stop strings; an empty string has no effect."""
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [stop for stop in stops if stop]

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def include_continuous_usage(self) -> bool:
        """Return whether each chunk of a stream has the usage so far; as in vLLM only together with include_usage."""
        return self.include_usage and bool(self.stream_options and self.stream_options.continuous_usage_stats)

    def refuse_unsupported(self) -> None:
        """Raise ApiError for a parameter that is not supported and would have an effect."""
        for name, value in (self.model_extra or {}).items():
            if value is None or name in IGNORED_PARAMETERS or value in self.neutral.get(name, ()):
                continue
            raise make_unsupported_error(name, *([self.remedies[name]] if name in self.remedies else []))
        if self.stream_options is None:
            return
        for name, value in (self.stream_options.model_extra or {}).items():
            if value is not None:
                raise make_unsupported_error(f"stream_options.{name}")
        if not self.stream and (self.stream_options.include_usage or self.stream_options.continuous_usage_stats):
            raise ApiError(400, "stream_options needs stream: true", param="stream_options")

    def count_top_logprobs(self) -> int | None:
        """Return how many likeliest tokens to report with each token; None for no log probabilities at all."""
        raise NotImplementedError

    @property
    def answer_count(self) -> int:
        """Return how many answers the request asks for."""
        return self.n or 1


class ChatRequest(GenerationRequest):
    # vLLM's defaults in chats.
    neutral = NEUTRAL_VALUES | {"add_special_tokens": (False,), "echo": (False,), "include_reasoning": (True,)}
    remedies = REMEDIES | CHAT_REMEDIES
    prompt_field = "messages"

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: Annotated[bool | None, WrapValidator(_validate_logprobs)] = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    tools: list[Tool] | None = Field(None, max_length=MAX_TOOLS)
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    # Variables for the chat template, such as {"enable_thinking": false}.
    chat_template_kwargs: dict[str, Any] | None = None

    _check_tool_choice = field_validator("tool_choice", mode="before")(check_tool_choice)

    def refuse_unsupported(self) -> None:
        super().refuse_unsupported()
        if self.top_logprobs and not self.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs: true", param="top_logprobs")

    def count_top_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(GenerationRequest):
    neutral = NEUTRAL_VALUES | {"add_special_tokens": (True,), "top_logprobs": (0,)}
    remedies = REMEDIES | COMPLETION_REMEDIES
    prompt_field = "prompt"

    prompt: Annotated[
        str
        | Annotated[list[Token], FIRST_FAULT]
        | Annotated[list[str], FIRST_FAULT]
        | Annotated[list[Annotated[list[Token], FIRST_FAULT]], FIRST_FAULT],
        WrapValidator(_validate_prompt),
    ]
    max_tokens: int | None = Field(None, ge=0)
    echo: bool | None = None
    # In chats it is true or false: false has no effect, but would become 0, which requests those of the answer.
    logprobs: Annotated[int | None, BeforeValidator(lambda value: None if value is False else value)] = Field(
        None, ge=0, le=MAX_LOGPROBS
    )

    def refuse_unsupported(self) -> None:
        super().refuse_unsupported()
        if self.max_tokens == 0 and not self.echo:
            message = "max_tokens is 0, which only returns a prompt: set echo, or at least 1 token"
            raise ApiError(400, message, param="max_tokens")

    def count_top_logprobs(self) -> int | None:
        return self.logprobs

    @property
    def answer_count(self) -> int:
        return super().answer_count * len(self.list_prompts())

    def list_prompts(self) -> list[str | list[int]]:
        """Return the prompts one by one, as text or as tokens."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if all(isinstance(part, int) for part in self.prompt):
            return [self.prompt]  # type: ignore[list-item]
        return list(self.prompt)  # type: ignore[arg-type]
