"""Limits of a request's size, and the checks that need only its JSON value. Pure.

Each limit is checked before the work that it limits: the body's size while it arrives (bodies.py), its structure before
it is parsed, these counts before it is validated, and the length of a prompt before it is tokenized (prompts.py).
"""

from collections.abc import Mapping
from typing import Any

from hone_server.protocol.errors import ApiError, make_too_many_error

MAX_BODY_BYTES = 4 << 20
MAX_JSON_DEPTH = 100
# Values in a JSON body. Parsing them holds Python's global lock for some 40 ms, in which no other thread runs.
MAX_VALUES = 1 << 16
# For a body whose prompt may be a list of tokens, which are parsed faster.
MAX_PROMPT_VALUES = 1 << 18
# Messages of a chat, and parts of their contents, together.
MAX_MESSAGES = 2048
MAX_STOPS = 64
MAX_STOP_CHARACTERS = 256
# As in vLLM.
MAX_LOGIT_BIAS = 1024
# Log probabilities of prompts in one answer. Each takes some 150 bytes in memory before it is sent.
MAX_PROMPT_LOGPROBS = 1 << 19


def check_counts(value: Any, most_prompts: int) -> None:
    """Raise ApiError 400 when a field of this JSON value has more entries than a request may have."""
    if not isinstance(value, Mapping):
        return
    _check_messages(value.get("messages"))
    _check_stops(value.get("stop"))
    _check_length("logit_bias", value.get("logit_bias"), MAX_LOGIT_BIAS, "tokens")
    prompts = value.get("prompt")
    if isinstance(prompts, list) and len(prompts) > most_prompts and isinstance(prompts[0], str | list):
        raise make_too_many_error("prompt", len(prompts), most_prompts)


def check_prompt_logprobs(tokens: int, top: int) -> None:
    """Raise ApiError 400 for too many log probabilities: of `tokens` tokens, with the `top` likeliest of each."""
    count = tokens * (top + 1)
    if count > MAX_PROMPT_LOGPROBS:
        message = (
            f"logprobs: {top} with echo make {count} log probabilities for prompts of {tokens} tokens, and an answer "
            f"has at most {MAX_PROMPT_LOGPROBS}; send fewer prompts, or ask for fewer logprobs"
        )
        raise ApiError(400, message, param="logprobs")


def _check_messages(messages: Any) -> None:
    if not isinstance(messages, list):
        return
    _check_length("messages", messages, MAX_MESSAGES, "messages")
    contents = [message.get("content") for message in messages if isinstance(message, Mapping)]
    parts = sum(len(content) for content in contents if isinstance(content, list))
    if parts > MAX_MESSAGES:
        message = f"messages: their contents have {parts} parts, and a request takes at most {MAX_MESSAGES}; join some"
        raise ApiError(400, message, param="messages")


def _check_stops(stops: Any) -> None:
    if isinstance(stops, list):
        _check_length("stop", stops, MAX_STOPS, "stop strings")
    for stop in stops if isinstance(stops, list) else [stops]:
        if isinstance(stop, str) and len(stop) > MAX_STOP_CHARACTERS:
            message = f"stop: one has {len(stop)} characters, and the longest is {MAX_STOP_CHARACTERS}; shorten it"
            raise ApiError(400, message, param="stop")


def _check_length(field: str, entries: Any, limit: int, what: str) -> None:
    if isinstance(entries, list | Mapping) and len(entries) > limit:
        message = f"{field}: {len(entries)} {what} were sent, and a request takes at most {limit}; send fewer"
        raise ApiError(400, message, param=field)


def is_unicode(text: str) -> bool:
    """Return whether the text can be encoded; a text with half of a surrogate pair can't."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
