"""Keep the numbers of messages, tools and template arguments as they are written.

The type in which `datasets` stores JSON writes ten digits after the point, reads 0.7 as 0.7000000000000001, turns NaN
into null and fails for integers beyond 64 bits. So `formats.shape` stores such numbers as marked text, and every reader
of rows restores the numbers: `formats.get_conversation`, `get_template_arguments`, and the tokenizer given to TRL.
"""

import json
from typing import Any

from transformers import PreTrainedTokenizerBase

MARK = "\ue000number:"
LARGEST = 2**63


def keep_numbers(value: Any) -> Any:
    """Return the value with marked text in place of numbers that would not be stored as they are."""
    if isinstance(value, dict):
        return {key: keep_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [keep_numbers(item) for item in value]
    is_large = isinstance(value, int) and not -LARGEST <= value < LARGEST
    return MARK + json.dumps(value) if isinstance(value, float) or is_large else value


def restore_numbers(value: Any) -> Any:
    """Return the value with its numbers in place of marked text."""
    if isinstance(value, dict):
        return {key: restore_numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [restore_numbers(item) for item in value]
    return json.loads(value[len(MARK) :]) if isinstance(value, str) and value.startswith(MARK) else value


class RestoringTokenizer:
    """A tokenizer, with what TRL's preparation of datasets calls, that gives the chat template the numbers."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer

    def __call__(self, **arguments: Any) -> Any:
        """Tokenize text."""
        return self._tokenizer(**arguments)

    def apply_chat_template(self, conversation: list[dict[str, Any]], **arguments: Any) -> Any:
        """Render and tokenize messages."""
        return self._tokenizer.apply_chat_template(restore_numbers(conversation), **restore_numbers(arguments))

    def decode(self, tokens: list[int]) -> str:
        """Return the text of tokens."""
        return str(self._tokenizer.decode(tokens))
