"""Format answers for HTTP: chat completions, with tool calls, and plain completions. Pure.

In: chunks of generation/generate.py. Out: the `choices` of a body or of the events of a stream.
"""

from dataclasses import replace
from functools import partial
from typing import Any, Protocol

from hone_server.generation.generate import OutputChunk
from hone_server.generation.logprobs import format_chat_logprobs, format_completion_logprobs
from hone_server.structured.tool_calls import CallsBegin, ToolCallDelta, ToolCallParser
from hone_server.structured.tool_formats import ToolCallFormat


class AnswerFormatter(Protocol):
    """One of the two formats: the prefix of ids, object names, and a choice, complete or in parts."""

    id_prefix: str
    object_type: str
    chunk_object_type: str

    def format_choice(self, chunk: OutputChunk) -> dict[str, Any]:
        """Return the choice of a finished answer."""

    def format_deltas(self, chunk: OutputChunk, *, first: bool) -> list[dict[str, Any]]:
        """Return the choices of a stream's events for this chunk."""


class ChatFormatter:
    id_prefix = "chatcmpl"
    object_type = "chat.completion"
    chunk_object_type = "chat.completion.chunk"

    def format_choice(self, chunk: OutputChunk) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": chunk.text}
        return self._make_choice(chunk, message)

    def format_deltas(self, chunk: OutputChunk, *, first: bool) -> list[dict[str, Any]]:
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}] if first else []
        if chunk.text or chunk.logprobs:
            deltas.append({"content": chunk.text})
        return self._make_delta_choices(chunk, deltas)

    def _make_choice(self, chunk: OutputChunk, message: dict[str, Any]) -> dict[str, Any]:
        logprobs = None if chunk.logprobs is None else format_chat_logprobs(chunk.logprobs)
        return {"index": chunk.index, "message": message, "logprobs": logprobs, "finish_reason": chunk.finish_reason}

    def _make_delta_choices(self, chunk: OutputChunk, deltas: list[dict[str, Any]]) -> list[dict[str, Any]]:
        choices: list[dict[str, Any]] = [
            {"index": chunk.index, "delta": delta, "logprobs": None, "finish_reason": None} for delta in deltas
        ]
        if chunk.logprobs:
            choices[-1]["logprobs"] = format_chat_logprobs(chunk.logprobs)
        if chunk.finish_reason:
            end = {"index": chunk.index, "delta": {}, "logprobs": None, "finish_reason": chunk.finish_reason}
            choices.append(end)
        return choices


class ToolCallFormatter(ChatFormatter):
    """The format of a chat whose answers may call these functions, in this form."""

    def __init__(self, tool_call_format: ToolCallFormat, names: set[str], calls_begin: CallsBegin) -> None:
        self._new_parser = partial(ToolCallParser, tool_call_format, names, calls_begin)
        self._parsers: dict[int, ToolCallParser] = {}

    def format_choice(self, chunk: OutputChunk) -> dict[str, Any]:
        parser, content, deltas = self._parse_chunk(chunk)
        calls: list[dict[str, Any]] = []
        for delta in deltas:
            if delta.name is not None:
                calls.append(_format_call(delta))
            else:
                calls[delta.index]["function"]["arguments"] += delta.arguments
        message: dict[str, Any] = {"role": "assistant", "content": content}
        if calls:
            message |= {"content": content or None, "tool_calls": calls}
        return self._make_choice(_mark_tool_calls(chunk, parser), message)

    def format_deltas(self, chunk: OutputChunk, *, first: bool) -> list[dict[str, Any]]:
        parser, content, parts = self._parse_chunk(chunk)
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}] if first else []
        if content or (chunk.logprobs and not parts):
            deltas.append({"content": content})
        # Clients merge the parts of one chunk only if they belong to different calls.
        deltas += [{"tool_calls": [{"index": delta.index, **_format_call(delta)}]} for delta in parts]
        return self._make_delta_choices(_mark_tool_calls(chunk, parser), deltas)

    def _parse_chunk(self, chunk: OutputChunk) -> tuple[ToolCallParser, str, list[ToolCallDelta]]:
        if chunk.index not in self._parsers:
            self._parsers[chunk.index] = self._new_parser()
        parser = self._parsers[chunk.index]
        content, deltas = parser.push(chunk.text, chunk.tool_calls_offset)
        return parser, content + parser.flush() if chunk.finish_reason else content, deltas


def _format_call(delta: ToolCallDelta) -> dict[str, Any]:
    if delta.name is None:
        return {"function": {"arguments": delta.arguments}}
    return {"id": delta.id, "type": "function", "function": {"name": delta.name, "arguments": ""}}


def _mark_tool_calls(chunk: OutputChunk, parser: ToolCallParser) -> OutputChunk:
    """Return the chunk with the reason `tool_calls` if its calls are complete.

    A client may run the calls of such an answer, so none of them may have been cut by a stop string.
    """
    is_called = parser.is_complete and chunk.finish_reason == "stop"
    return replace(chunk, finish_reason="tool_calls") if is_called else chunk


class CompletionFormatter:
    id_prefix = "cmpl"
    object_type = chunk_object_type = "text_completion"

    def format_choice(self, chunk: OutputChunk) -> dict[str, Any]:
        logprobs = None if chunk.logprobs is None else format_completion_logprobs(chunk.logprobs)
        return {"index": chunk.index, "text": chunk.text, "logprobs": logprobs, "finish_reason": chunk.finish_reason}

    def format_deltas(self, chunk: OutputChunk, *, first: bool) -> list[dict[str, Any]]:
        return [self.format_choice(chunk)]


def make_usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
