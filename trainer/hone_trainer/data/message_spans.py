"""Find each message of a conversation in the text that the chat template makes of it. Pure, except for the template.

A message is found by rendering the conversation again with marks in place of the texts of that message. The parts
before the first mark and after the last one must be the same in the text: a template may write other messages
differently when one changes, and then nothing is guessed.
"""

import itertools
from collections.abc import Callable, Iterable
from typing import Any

from hone_trainer.data.messages import Message

# Where a message begins and ends in the text, in characters.
Region = tuple[int, int]

# A character for private use, which no template trims and no text is likely to hold.
MARK = "\ue000"

TEXTS = ("content", "reasoning_content", "thinking", "reasoning")


class NotLocatedError(Exception):
    """A message that must be found can't be located in the text."""


Render = Callable[[list[Message]], str]


def locate_messages(
    text: str, messages: list[Message], render: Render, is_wanted: Callable[[Message], bool]
) -> list[Region | None]:
    """Return where each message is in `text`, which is `render(messages)`; None: it is not written, or not located.

    Raises NotLocatedError for a message that `is_wanted`, is written, and can't be distinguished from its neighbours.
    """
    regions = [_find_exactly(text, messages, number, render) for number in range(len(messages))]
    found = list(regions)
    for number, message in enumerate(messages):
        if is_wanted(message) and regions[number] is None:
            found[number] = _find_otherwise(text, messages, number, render, regions)
    return found


def _find_exactly(text: str, messages: list[Message], number: int, render: Render) -> Region | None:
    """Return where a message is, if the text around it is the same with marks in its place."""
    try:
        other = _render_marked(messages, number, render)
    except Exception:  # a template may raise any exception; whether that matters depends on the message
        return None
    first, last = other.find(MARK), other.rfind(MARK)
    before, after = other[:first], other[last + 1 :]
    if first < 0 or len(before) + len(after) > len(text):
        return None
    return (len(before), len(text) - len(after)) if text.startswith(before) and text.endswith(after) else None


def _find_otherwise(
    text: str, messages: list[Message], number: int, render: Render, regions: list[Region | None]
) -> Region | None:
    """Return where a message is whose text decides how the conversation is written. Raises NotLocatedError."""
    for content in _spell_content(messages[number]):
        other = render([*messages[:number], messages[number] | {"content": content + MARK}, *messages[number + 1 :]])
        end = other.find(MARK)
        if other.replace(MARK, "") == text and other.count(MARK) == 1 and text[:end].endswith(content):
            return end - len(content), end
    marked = _render_marked(messages, number, render)
    if MARK not in marked and marked == text:
        return None  # the template leaves it out
    start, end = _find_difference(text, marked)
    before = 0 if number == 0 else _get(regions[number - 1], 1)
    after = len(text) if number + 1 == len(messages) else _get(regions[number + 1], 0)
    if before is None or after is None or not before <= start <= end <= after:
        raise NotLocatedError(
            f"the chat template writes other messages differently when message {number + 1} has another text"
        )
    return start, end


def _spell_content(message: Message) -> list[str]:
    """Return the content as it may be written, if the message has nothing else to learn."""
    content = message.get("content")
    if not isinstance(content, str) or message.get("tool_calls") or any(message.get(key) for key in TEXTS[1:]):
        return []
    return [content, content.strip()]


def _render_marked(messages: list[Message], number: int, render: Render) -> str:
    return render([*messages[:number], _mark(messages[number]), *messages[number + 1 :]])


def _mark(message: Message) -> Message:
    """Return the message with a mark in place of each of its texts, of the same form."""
    marked = message | {key: MARK for key in TEXTS if isinstance(message.get(key), str)}
    if isinstance(message.get("content"), list):
        marked["content"] = [part | {"text": MARK} for part in message["content"]]
    if message.get("tool_calls"):
        marked["tool_calls"] = [_mark_call(call) for call in message["tool_calls"]]
    elif "content" not in marked or marked["content"] is None:
        marked["content"] = MARK
    return marked


def _mark_call(call: dict[str, Any]) -> dict[str, Any]:
    function = call.get("function")
    if isinstance(function, dict):
        return call | {"function": _mark_call(function)}
    marked = call | ({"name": MARK} if isinstance(call.get("name"), str) else {})
    arguments = call.get("arguments")
    if isinstance(arguments, dict):
        marked["arguments"] = {MARK: MARK}
    elif isinstance(arguments, str):
        marked["arguments"] = MARK
    return marked


def _find_difference(text: str, other: str) -> Region:
    """Return where the part of `text` begins and ends that `other` does not share."""
    start = _count_equal(zip(text, other, strict=False))
    return start, len(text) - _count_equal(zip(reversed(text[start:]), reversed(other[start:]), strict=False))


def _count_equal(pairs: Iterable[tuple[str, str]]) -> int:
    """Return how many pairs come before the first one of different letters."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def _get(region: Region | None, end: int) -> int | None:
    return None if region is None else region[end]
