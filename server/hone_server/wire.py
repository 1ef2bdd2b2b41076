"""How answers look on the wire: chat completions and plain completions. Pure."""

from typing import Any, Protocol

from .generation import Piece
from .logprobs import chat_logprobs, completion_logprobs


class Wire(Protocol):
    """One of the two shapes: id prefix, object names, and a choice as a whole and in parts."""

    prefix: str
    whole: str
    part: str

    def choice(self, piece: Piece) -> dict[str, Any]:
        """A finished answer."""

    def deltas(self, piece: Piece, *, first: bool) -> list[dict[str, Any]]:
        """The parts of a stream that this piece makes."""


class ChatWire:
    prefix = "chatcmpl"
    whole = "chat.completion"
    part = "chat.completion.chunk"

    def choice(self, piece: Piece) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": piece.text}
        logprobs = None if piece.logprobs is None else chat_logprobs(piece.logprobs)
        return {"index": piece.index, "message": message, "logprobs": logprobs, "finish_reason": piece.finish_reason}

    def deltas(self, piece: Piece, *, first: bool) -> list[dict[str, Any]]:
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}] if first else []
        if piece.text or piece.logprobs:
            deltas.append({"content": piece.text})
        choices: list[dict[str, Any]] = [
            {"index": piece.index, "delta": delta, "logprobs": None, "finish_reason": None} for delta in deltas
        ]
        if piece.logprobs:
            choices[-1]["logprobs"] = chat_logprobs(piece.logprobs)
        if piece.finish_reason:
            end = {"index": piece.index, "delta": {}, "logprobs": None, "finish_reason": piece.finish_reason}
            choices.append(end)
        return choices


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
