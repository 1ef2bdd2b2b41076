"""From the text of an answer to its tool calls, piece by piece. Pure.

Guided decoding has made the text, so that it has the form of its `ToolFormat` and its arguments are JSON, unless the
answer was cut: by its length, or by a stop string.
"""

import re
import secrets
import string
from collections.abc import Callable
from dataclasses import dataclass

from .toolformats import ToolFormat

SHORT_ID = 9


@dataclass(frozen=True)
class Part:
    """A part of call number `index`: its beginning, which has its id and name, or a piece of its arguments."""

    index: int
    arguments: str = ""
    id: str | None = None
    name: str | None = None


class ToolCallParser:
    """One answer: push its text, and get what is content and what are parts of calls; flush at the end."""

    def __init__(self, form: ToolFormat, names: set[str]) -> None:
        self._form = form
        self._names = names
        self._held = ""
        self._read: Callable[[], tuple[str, list[Part]]] = self._read_text if form.trigger else self._read_beginning
        self._depth = 0
        self._is_string = self._is_escaped = False
        # Names have nothing that needs an escape.
        begin, middle = re.escape(form.opening), re.escape(form.middle)
        self._head = re.compile(rf'{begin}([^"]*){middle}')
        self.calls = 0

    def push(self, text: str) -> tuple[str, list[Part]]:
        """Return the content that is sure by now, and the parts of calls."""
        self._held += text
        content, parts = "", list[Part]()
        while True:
            state = self._read
            more, some = state()
            content += more
            parts += some
            if self._read == state:
                return content, parts

    def flush(self) -> str:
        """Return the content that was held back for a call that did not come."""
        held, self._held = self._held, ""
        return held if self._read in (self._read_text, self._read_beginning) else ""

    def _read_beginning(self) -> tuple[str, list[Part]]:
        """The first text decides whether the answer has nothing but calls."""
        heads = [f"{self._form.opening}{name}{self._form.middle}" for name in self._names]
        if any(self._held.startswith(head) for head in heads):
            self._read = self._read_head
        elif not any(head.startswith(self._held) for head in heads):
            self._read = self._read_rest
        return "", []

    def _read_rest(self) -> tuple[str, list[Part]]:
        content, self._held = self._held, ""
        return content, []

    def _read_text(self) -> tuple[str, list[Part]]:
        """Content comes before the trigger."""
        trigger = self._form.trigger or ""
        place = self._held.find(trigger)
        if place < 0:
            place = len(self._held) - _overlap(self._held, trigger)
        else:
            self._read = self._read_head
        content, self._held = self._held[:place], self._held[place:]
        return content, []

    def _read_head(self) -> tuple[str, list[Part]]:
        head = self._head.search(self._held)
        if head is None:
            return "", []
        self._held = self._held[head.end() :]
        self._read = self._read_arguments
        self.calls += 1
        return "", [Part(self.calls - 1, id=make_id(self._form), name=head[1])]

    def _read_arguments(self) -> tuple[str, list[Part]]:
        """The arguments are one JSON object, and end with it."""
        end = self._end_of_object()
        arguments, self._held = self._held[:end], self._held[end:]
        if end and self._depth == 0:
            self._read = self._read_head
        return "", [Part(self.calls - 1, arguments)] if arguments else []

    def _end_of_object(self) -> int:
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
        return len(self._held)


def _overlap(text: str, mark: str) -> int:
    """Return the length of the longest end of the text that begins the mark, without being all of it."""
    longest = min(len(text), len(mark) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(mark[:size])), 0)


def make_id(form: ToolFormat) -> str:
    if form.short_ids:
        return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(SHORT_ID))
    return f"call_{secrets.token_hex(12)}"
