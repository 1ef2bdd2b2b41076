"""Parse tool calls from the text of an answer, piece by piece. Pure.

Guided decoding made the text, so its calls have the form of its `ToolFormat` and their arguments are JSON objects,
unless the answer was cut by its length or by a stop string. A call that is cut before its name is content.
"""

import re
import secrets
import string
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from hone_server.structured.tool_formats import ToolFormat

SHORT_ID = 9


@dataclass(frozen=True)
class Part:
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

    calls: how many have begun. is_complete: after `flush`, whether there are calls, and none of them was cut.
    """

    def __init__(self, form: ToolFormat, names: set[str], begin: CallsBegin) -> None:
        self._form = form
        self._heads = [f"{form.opening}{name}{form.middle}" for name in names]
        self._held = ""
        self._passed = 0  # characters that are no longer held
        self._calls_at: int | None = None
        readers = {
            CallsBegin.ALWAYS: self._read_head,
            CallsBegin.FIRST: self._read_first,
            CallsBegin.MARK: self._read_to_mark,
            CallsBegin.TOKEN: self._read_to_token,
        }
        self._read: Callable[[], tuple[str, list[Part]]] = readers[begin]
        self._depth = 0
        self._is_string = self._is_escaped = False
        # Names have nothing that needs an escape.
        opening, middle = re.escape(form.opening), re.escape(form.middle)
        self._head = re.compile(rf'{opening}([^"]*){middle}')
        self.calls = 0
        self.is_complete = False

    def push(self, text: str, calls_at: int | None = None) -> tuple[str, list[Part]]:
        """Return the content that is certain so far, and the parts of calls.

        calls_at: where the trigger token is, in characters of the answer's text; None: not yet known.
        """
        self._held += text
        self._calls_at = calls_at
        content, parts = "", list[Part]()
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
        if self._read == self._read_head and self.calls:
            held = self._without_end(held)
            self.is_complete = not held
        return held

    def _take(self, characters: int) -> str:
        taken, self._held = self._held[:characters], self._held[characters:]
        self._passed += len(taken)
        return taken

    def _read_first(self) -> tuple[str, list[Part]]:
        text, trigger = self._held.lstrip(), self._form.trigger
        if self._form.optional:
            text = text.removeprefix(self._form.optional)
        begins = self._heads if trigger is None else [trigger]
        if any(text.startswith(begin) for begin in begins):
            self._read = self._read_head
        elif not any(begin.startswith(text) for begin in [*begins, self._form.optional or ""]):
            self._read = self._read_rest
        return "", []

    def _read_rest(self) -> tuple[str, list[Part]]:
        return self._take(len(self._held)), []

    def _read_to_mark(self) -> tuple[str, list[Part]]:
        mark = self._form.trigger or ""
        place = self._held.find(mark)
        if place < 0:
            return self._take(len(self._held) - _overlap(self._held, mark)), []
        self._read = self._read_head
        return self._take(place), []

    def _read_to_token(self) -> tuple[str, list[Part]]:
        if self._calls_at is None:
            return self._read_rest()
        place = self._calls_at - self._passed
        if place < len(self._held):
            self._read = self._read_head
        return self._take(place), []

    def _read_head(self) -> tuple[str, list[Part]]:
        head = self._head.search(self._held)
        if head is None:
            return "", []
        self._take(head.end())
        self._read = self._read_arguments
        self.calls += 1
        return "", [Part(self.calls - 1, id=make_id(self._form), name=head[1])]

    def _read_arguments(self) -> tuple[str, list[Part]]:
        """Return the arguments so far: one JSON object, at whose end they end."""
        end = self._end_of_object()
        if end is not None:
            self._read = self._read_head
        arguments = self._take(len(self._held) if end is None else end)
        return "", [Part(self.calls - 1, arguments)] if arguments else []

    def _end_of_object(self) -> int | None:
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

    def _without_end(self, held: str) -> str:
        """Return the text after a call's arguments, without the part of the call's end that has come."""
        held = held[_common(held, self._form.closing) :]
        end = self._form.after if held.startswith(self._form.after or " ") else self._form.separator
        held = held[_common(held, end) :]
        return held if held.strip() else ""


def _common(text: str, other: str) -> int:
    """Return the length of the longest common prefix."""
    shorter = min(len(text), len(other))
    return next((place for place in range(shorter) if text[place] != other[place]), shorter)


def _overlap(text: str, mark: str) -> int:
    """Return the length of the longest suffix of the text that is a proper prefix of the mark."""
    longest = min(len(text), len(mark) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(mark[:size])), 0)


def make_id(form: ToolFormat) -> str:
    if form.short_ids:
        return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(SHORT_ID))
    return f"call_{secrets.token_hex(12)}"
