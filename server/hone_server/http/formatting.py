"""Format answers for HTTP: chat completions, with tool calls, and plain completions. Pure.

In: pieces of generation/generate.py. Out: the `choices` of a body or of the events of a stream.
"""

from dataclasses import replace
from functools import partial
from typing import Any, Protocol

from hone_server.generation.generate import Piece
from hone_server.generation.logprobs import chat_logprobs, completion_logprobs
from hone_server.structured.tool_calls import CallsBegin, Part, ToolCallParser
from hone_server.structured.tool_formats import ToolFormat


class Wire(Protocol):
    """One of the two formats: the prefix of ids, object names, and a choice, complete or in parts."""

    prefix: str
    whole: str
    part: str

    def choice(self, piece: Piece) -> dict[str, Any]:
        """Return the choice of a finished answer."""

    def deltas(self, piece: Piece, *, first: bool) -> list[dict[str, Any]]:
        """Return the choices of a stream's events for this piece."""


class ChatWire:
    prefix = "chatcmpl"
    whole = "chat.completion"
    part = "chat.completion.chunk"

    def choice(self, piece: Piece) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": piece.text}
        return self._choice(piece, message)

    def deltas(self, piece: Piece, *, first: bool) -> list[dict[str, Any]]:
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}] if first else []
        if piece.text or piece.logprobs:
            deltas.append({"content": piece.text})
        return self._choices(piece, deltas)

    def _choice(self, piece: Piece, message: dict[str, Any]) -> dict[str, Any]:
        logprobs = None if piece.logprobs is None else chat_logprobs(piece.logprobs)
        return {"index": piece.index, "message": message, "logprobs": logprobs, "finish_reason": piece.finish_reason}

    def _choices(self, piece: Piece, deltas: list[dict[str, Any]]) -> list[dict[str, Any]]:
        choices: list[dict[str, Any]] = [
            {"index": piece.index, "delta": delta, "logprobs": None, "finish_reason": None} for delta in deltas
        ]
        if piece.logprobs:
            choices[-1]["logprobs"] = chat_logprobs(piece.logprobs)
        if piece.finish_reason:
            end = {"index": piece.index, "delta": {}, "logprobs": None, "finish_reason": piece.finish_reason}
            choices.append(end)
        return choices


class ToolWire(ChatWire):
    """The format of a chat whose answers may call these functions, in this form."""

    def __init__(self, form: ToolFormat, names: set[str], begin: CallsBegin) -> None:
        self._new_parser = partial(ToolCallParser, form, names, begin)
        self._parsers: dict[int, ToolCallParser] = {}

    def choice(self, piece: Piece) -> dict[str, Any]:
        parser, content, parts = self._parse(piece)
        calls: list[dict[str, Any]] = []
        for part in parts:
            if part.name is not None:
                calls.append(_call(part))
            else:
                calls[part.index]["function"]["arguments"] += part.arguments
        message: dict[str, Any] = {"role": "assistant", "content": content}
        if calls:
            message |= {"content": content or None, "tool_calls": calls}
        return self._choice(_ended(piece, parser), message)

    def deltas(self, piece: Piece, *, first: bool) -> list[dict[str, Any]]:
        parser, content, parts = self._parse(piece)
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}] if first else []
        if content or (piece.logprobs and not parts):
            deltas.append({"content": content})
        # Clients merge the parts of one chunk only if they belong to different calls.
        deltas += [{"tool_calls": [{"index": part.index, **_call(part)}]} for part in parts]
        return self._choices(_ended(piece, parser), deltas)

    def _parse(self, piece: Piece) -> tuple[ToolCallParser, str, list[Part]]:
        if piece.index not in self._parsers:
            self._parsers[piece.index] = self._new_parser()
        parser = self._parsers[piece.index]
        content, parts = parser.push(piece.text, piece.calls_at)
        return parser, content + parser.flush() if piece.finish_reason else content, parts


def _call(part: Part) -> dict[str, Any]:
    if part.name is None:
        return {"function": {"arguments": part.arguments}}
    return {"id": part.id, "type": "function", "function": {"name": part.name, "arguments": ""}}


def _ended(piece: Piece, parser: ToolCallParser) -> Piece:
    """Return the piece with the reason `tool_calls` if its calls are complete.

    A client may run the calls of such an answer, so none of them may have been cut by a stop string.
    """
    is_called = parser.is_complete and piece.finish_reason == "stop"
    return replace(piece, finish_reason="tool_calls") if is_called else piece


class CompletionWire:
    prefix = "cmpl"
    whole = part = "text_completion"

    def choice(self, piece: Piece) -> dict[str, Any]:
        logprobs = None if piece.logprobs is None else completion_logprobs(piece.logprobs)
        return {"index": piece.index, "text": piece.text, "logprobs": logprobs, "finish_reason": piece.finish_reason}

    def deltas(self, piece: Piece, *, first: bool) -> list[dict[str, Any]]:
        return [self.choice(piece)]


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
