"""Parse tool calls from the text of an answer, piece by piece. Pure.

Guided decoding made the text, so its calls have the form of its `ToolCallFormat` and their arguments are JSON objects,
unless the answer was cut by its length or by a stop string. A call that is cut before its name is content.
"""

import re
import secrets
import string
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from hone_server.structured.tool_formats import ToolCallFormat

SHORT_ID_CHARACTERS = 9


@dataclass(frozen=True)
class ToolCallDelta:
    """A part of call number `index`: its beginning, which has its id and name, or a piece of its arguments."""

    index: int
    arguments: str = ""
    id: str | None = None
    name: str | None = None


class CallsBegin(Enum):
    """Where the grammar of an answer lets its calls begin. Anywhere else the same text is content."""

    ALWAYS = "the answer has nothing but calls"
    FIRST = "the first text decides whether the answer has nothing but calls"
    MARK = "at the first text that is the trigger of the form"
    TOKEN = "at the token that is the trigger of the form; the same text in other tokens is content"


class ToolCallParser:
    """Parses one answer: push its text, and get content and parts of calls; flush at the end.

    call_count: how many have begun. is_complete: after `flush`, whether there are calls, and none of them was cut.
    """

    def __init__(self, tool_call_format: ToolCallFormat, names: set[str], calls_begin: CallsBegin) -> None:
        self._format = tool_call_format
        self._heads = [f"{tool_call_format.opening}{name}{tool_call_format.middle}" for name in names]
        self._held = ""
        self._passed = 0  # characters that are no longer held
        self._calls_at: int | None = None
        readers = {
            CallsBegin.ALWAYS: self._read_head,
            CallsBegin.FIRST: self._read_first,
            CallsBegin.MARK: self._read_to_mark,
            CallsBegin.TOKEN: self._read_to_token,
        }
        self._read: Callable[[], tuple[str, list[ToolCallDelta]]] = readers[calls_begin]
        self._depth = 0
        self._is_string = self._is_escaped = False
        # Names have nothing that needs an escape.
        opening, middle = re.escape(tool_call_format.opening), re.escape(tool_call_format.middle)
        self._head = re.compile(rf'{opening}([^"]*){middle}')
        self.call_count = 0
        self.is_complete = False

    def push(self, text: str, calls_at: int | None = None) -> tuple[str, list[ToolCallDelta]]:
        """Return the content that is certain so far, and the parts of calls.

        calls_at: where the trigger token is, in characters of the answer's text; None: not yet known.
        """
        self._held += text
        self._calls_at = calls_at
        content, parts = "", list[ToolCallDelta]()
        while True:
            state = self._read
            more, some = state()
            content += more
            parts += some
            if self._read == state:
                return content, parts

    def flush(self) -> str:
        """Return what was held back: content, or the beginning of a call that was cut before its name."""
        held, self._held = self._held, ""
        if self._read == self._read_arguments:
            return ""
        if self._read == self._read_head and self.call_count:
            held = self._strip_call_end(held)
            self.is_complete = not held
        return held

    def _take_held(self, characters: int) -> str:
        taken, self._held = self._held[:characters], self._held[characters:]
        self._passed += len(taken)
        return taken

    def _read_first(self) -> tuple[str, list[ToolCallDelta]]:
        text, trigger = self._held.lstrip(), self._format.trigger
        if self._format.optional:
            text = text.removeprefix(self._format.optional)
        begins = self._heads if trigger is None else [trigger]
        if any(text.startswith(calls_begin) for calls_begin in begins):
            self._read = self._read_head
        elif not any(begin.startswith(text) for begin in [*begins, self._format.optional or ""]):
            self._read = self._read_rest
        return "", []

    def _read_rest(self) -> tuple[str, list[ToolCallDelta]]:
        return self._take_held(len(self._held)), []

    def _read_to_mark(self) -> tuple[str, list[ToolCallDelta]]:
        mark = self._format.trigger or ""
        place = self._held.find(mark)
        if place < 0:
            return self._take_held(len(self._held) - _measure_overlap(self._held, mark)), []
        self._read = self._read_head
        return self._take_held(place), []

    def _read_to_token(self) -> tuple[str, list[ToolCallDelta]]:
        if self._calls_at is None:
            return self._read_rest()
        place = self._calls_at - self._passed
        if place < len(self._held):
            self._read = self._read_head
        return self._take_held(place), []

    def _read_head(self) -> tuple[str, list[ToolCallDelta]]:
        head = self._head.search(self._held)
        if head is None:
            return "", []
        self._take_held(head.end())
        self._read = self._read_arguments
        self.call_count += 1
        return "", [ToolCallDelta(self.call_count - 1, id=make_call_id(self._format), name=head[1])]

    def _read_arguments(self) -> tuple[str, list[ToolCallDelta]]:
        """Return the arguments so far: one JSON object, at whose end they end."""
        end = self._find_object_end()
        if end is not None:
            self._read = self._read_head
        arguments = self._take_held(len(self._held) if end is None else end)
        return "", [ToolCallDelta(self.call_count - 1, arguments)] if arguments else []

    def _find_object_end(self) -> int | None:
        """Return the place after the bracket that closes the object; None if it has not come yet."""
        for place, letter in enumerate(self._held):
            if self._is_escaped:
                self._is_escaped = False
            elif self._is_string:
                self._is_escaped = letter == "\\"
                self._is_string = letter != '"'
            elif letter == '"':
                self._is_string = True
            elif letter in "{[":
                self._depth += 1
            elif letter in "}]":
                self._depth -= 1
                if self._depth == 0:
                    return place + 1
        return None

    def _strip_call_end(self, held: str) -> str:
        """Return the text after a call's arguments, without the part of the call's end that has come."""
        held = held[_measure_common_prefix(held, self._format.closing) :]
        end = self._format.after if held.startswith(self._format.after or " ") else self._format.separator
        held = held[_measure_common_prefix(held, end) :]
        return held if held.strip() else ""


def _measure_common_prefix(text: str, other: str) -> int:
    """Return the length of the longest common prefix."""
    shorter = min(len(text), len(other))
    return next((place for place in range(shorter) if text[place] != other[place]), shorter)


def _measure_overlap(text: str, mark: str) -> int:
    """Return the length of the longest suffix of the text that is a proper prefix of the mark."""
    longest = min(len(text), len(mark) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(mark[:size])), 0)


def make_call_id(form: ToolCallFormat) -> str:
    if form.short_ids:
        return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(SHORT_ID_CHARACTERS))
    return f"call_{secrets.token_hex(12)}"
