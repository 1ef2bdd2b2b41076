"""The contents of a message of a shaped row: texts, or nothing at all."""

from typing import Any

from hone_trainer.data.messages import LEARNING_FLAGS, Message

# Keys that hold nothing to learn, next to the content.
DESCRIBES = ("role", "content", "name", *LEARNING_FLAGS)


def get_texts(message: Message) -> list[str]:
    """Return the texts in a message's content, which is a string, a list of text parts, or missing."""
    content: Any = message.get("content")
    return [content] if isinstance(content, str) else [part["text"] for part in content or []]


def is_empty(message: Message) -> bool:
    """Return whether a message has no text but whitespace, and nothing in its place, such as a tool call."""
    replaced = any(value for key, value in message.items() if key not in DESCRIBES)
    return not replaced and not any(text.strip() for text in get_texts(message))
