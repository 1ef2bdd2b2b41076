"""How answers look on the wire: chat completions and plain completions. Pure."""

from typing import Any, Protocol

from .generation import Piece


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
        return {"index": piece.index, "message": message, "logprobs": None, "finish_reason": piece.finish_reason}

    def deltas(self, piece: Piece, *, first: bool) -> list[dict[str, Any]]:
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}] if first else []
        if piece.text:
            deltas.append({"content": piece.text})
        reasons: list[str | None] = [None] * len(deltas)
        if piece.finish_reason:
            deltas.append({})
            reasons.append(piece.finish_reason)
        return [
            {"index": piece.index, "delta": delta, "finish_reason": reason}
            for delta, reason in zip(deltas, reasons, strict=True)
        ]


class CompletionWire:
    prefix = "cmpl"
    whole = part = "text_completion"

    def choice(self, piece: Piece) -> dict[str, Any]:
        return {"index": piece.index, "text": piece.text, "logprobs": None, "finish_reason": piece.finish_reason}

    def deltas(self, piece: Piece, *, first: bool) -> list[dict[str, Any]]:
        return [self.choice(piece)]


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
