"""Read the messages of a row as the chat template gets them. Pure.

`formats.shape` passes in the value of a column, as the file holds it: messages spelled as OpenAI and TRL do (`role`,
`content`, `tool_calls`, …) or as ShareGPT does (`from`, `value`), or the columns of Alpaca. Out come messages that
keep every key the user wrote, because templates read more than role and content; a key that is null counts as absent.
What cannot be trained on is refused with its place. Next: `tokenization`, which renders and tokenizes them.
"""

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from hone_api.reasons import DATASET_INVALID, HoneError

Message = dict[str, Any]

SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "function_call": "assistant",
}
# How OpenAI and axolotl mark messages; no template reads them.
LEARNING_FLAGS = ("weight", "train")
# What apply_chat_template, TRL's call of it, and transformers' rendering take themselves: no variables of a template.
RESERVED_ARGUMENTS = frozenset(
    "add_generation_prompt chat_template continue_final_message conversation conversations input max_length "
    "messages padding processing_class return_assistant_tokens_mask return_dict return_tensors sanitize_control_tokens "
    "self tokenize tokenizer tokenizer_kwargs tools truncation".split()
)
# Keys in place of content.
REPLACES_CONTENT = ("tool_calls", "reasoning_content", "thinking", "reasoning")
CALL = '{"type": "function", "function": {"name": …, "arguments": {…}}}'


@dataclass
class MessageCounts:
    """Counts of messages with parts that templates may ignore, collected while rows are read."""

    # All messages.
    messages: int = 0
    # For each key but role, content and the flags of learning, the messages that have it.
    keys: Counter[str] = field(default_factory=Counter)
    # Messages whose content is a list of text parts.
    text_parts: int = 0
    # Messages with a tool call whose arguments are a string and not an object.
    text_arguments: int = 0
    # Messages that `weight: 0` or `train: false` excludes from the loss.
    unlearned: int = 0

    # Messages of other roles than assistant that `weight: 1` or `train: true` marks as to be learned.
    marked_others: int = 0

    def add(self, messages: list[Message]) -> None:
        """Count messages."""
        self.messages += len(messages)
        for message in messages:
            self.keys.update(key for key in message if key not in ("role", "content", *LEARNING_FLAGS))
            self.text_parts += isinstance(message.get("content"), list)
            self.text_arguments += any(isinstance(_get_arguments(call), str) for call in message.get("tool_calls", ()))
            self.unlearned += not is_learned(message)
            is_marked = message.get("weight") == 1 or message.get("train") is True
            self.marked_others += is_marked and message["role"] != "assistant"


def is_learned(message: Message) -> bool:
    """Return whether the loss may be taken of the message: not with `weight: 0` or `train: false`."""
    return bool(message.get("weight", 1)) and bool(message.get("train", True))


def read_messages(where: str, value: Any) -> list[Message]:
    """Return the messages of a column. Raises HoneError DatasetInvalid."""
    if not isinstance(value, list) or not value:
        raise HoneError(
            DATASET_INVALID,
            f"{where} holds {show_value(value)} where a list of messages should be",
            remedy="Write the list as JSON, not as a string of it, in a jsonl file; CSV can't hold lists."
            if isinstance(value, str)
            else "Write a list of objects with role and content.",
        )
    return [_read_message(f"{where}, message {number}", message) for number, message in enumerate(value, start=1)]


def read_alpaca(where: str, row: dict[str, Any], columns: dict[str, str]) -> list[Message]:
    """Return Alpaca's history, instruction, input and output as messages. Raises HoneError DatasetInvalid."""
    history = row.get(columns.get("history", ""))
    turns = [*_read_history(f"{where}, column {columns.get('history')}", history)]
    question = read_text(where, columns["instruction"], row[columns["instruction"]])
    given = row.get(columns.get("input", ""))
    if given is not None:
        question = "\n\n".join(filter(None, (question, read_text(where, columns["input"], given))))
    turns.append((question, read_text(where, columns["output"], row[columns["output"]])))
    return [
        {"role": role, "content": content}
        for turn in turns
        for role, content in zip(("user", "assistant"), turn, strict=True)
    ]


def add_system(where: str, messages: list[Message], value: Any) -> list[Message]:
    """Return the messages with a system prompt in front; null and empty mean no system prompt.

    Raises HoneError DatasetInvalid when the messages begin with another one.
    """
    if value is None or value == "":
        return messages
    if not isinstance(value, str):
        raise HoneError(DATASET_INVALID, f"{where} holds {show_value(value)} where a string should be")
    if messages[0]["role"] != "system":
        return [{"role": "system", "content": value}, *messages]
    if messages[0].get("content") != value:
        raise HoneError(
            DATASET_INVALID,
            f"{where} is {show_value(value)}, and the messages of the row begin with another system message",
            remedy="Leave one of the two out.",
        )
    return messages


def read_tools(where: str, value: Any) -> list[Any] | None:
    """Return the tools that a row gives to the chat template: a list, or a string of JSON that holds one.

    Raises HoneError DatasetInvalid.
    """
    tools = value
    if isinstance(value, str):
        tools = _parse_json(where, value) if value.strip() else None
    if tools is None:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise HoneError(
            DATASET_INVALID,
            f"{where} holds {show_value(value)} where a list of tools, or JSON of it, should be",
            remedy='Write a list of objects such as {"type": "function", "function": {"name": …, "parameters": {…}}}.',
        )
    return tools


def read_template_arguments(where: str, value: Any) -> dict[str, Any]:
    """Return the variables that a row gives to the chat template. Raises HoneError DatasetInvalid."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise HoneError(DATASET_INVALID, f"{where} holds {show_value(value)} where an object should be")
    for name in value:
        if name in RESERVED_ARGUMENTS:
            raise HoneError(
                DATASET_INVALID,
                f"{where} sets {name}, which is an argument of apply_chat_template and not a variable of the template",
                remedy=f"Remove {name} from the column.",
            )
    return {name: given for name, given in value.items() if given is not None}


def join_text_parts(message: Message) -> Message:
    """Return the message with its text parts as one string, as vLLM joins them for a template that takes strings."""
    content = message.get("content")
    if not isinstance(content, list):
        return message
    return message | {"content": "\n".join(part["text"] for part in content)}


def read_text(where: str, column: str, value: Any) -> str:
    """Return the string that a column holds. Raises HoneError DatasetInvalid."""
    if isinstance(value, str):
        return value
    raise HoneError(DATASET_INVALID, f"{where}, column {column} holds {show_value(value)} where a string should be")


def show_value(value: Any) -> str:
    """Return the start of a value, for a message."""
    try:
        text = repr(value)
    except RecursionError:
        return f"a deeply nested {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "…"


def _read_message(where: str, given: Any) -> Message:
    message: Any = given
    if isinstance(message, dict):
        message = {key: value for key, value in message.items() if value is not None or key == "content"}
        if "from" in message and "role" not in message:
            message = _read_sharegpt(where, message)
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise HoneError(
            DATASET_INVALID,
            f"{where} is {show_value(message)} where an object with the strings role and content should be",
        )
    if "function_call" in message:
        raise HoneError(
            DATASET_INVALID,
            f"{where} has function_call, which chat templates do not read",
            remedy=f"Write it as tool_calls: [{CALL}].",
        )
    read: Message = message
    _check_tool_calls(where, read.get("tool_calls", []))
    _check_learning_flags(where, read)
    content = read.get("content")
    if isinstance(content, list):
        return read | {"content": [_read_part(where, part) for part in content]}
    if content is None:
        _check_that_something_replaces_content(where, read)
    elif not isinstance(content, str):
        raise HoneError(
            DATASET_INVALID,
            f"{where} has the content {show_value(content)} where a string or a list of text parts should be",
        )
    return read


def _read_sharegpt(where: str, message: Message) -> Message:
    speaker = message["from"]
    if not isinstance(speaker, str) or speaker not in SHAREGPT_ROLES:
        known = ", ".join(SHAREGPT_ROLES)
        raise HoneError(DATASET_INVALID, f"{where} is from {show_value(speaker)}, which is none of {known}")
    others = {key: value for key, value in message.items() if key not in ("from", "value")}
    message = {"role": SHAREGPT_ROLES[speaker], "content": message.get("value"), **others}
    if speaker == "function_call":
        text = message["content"]
        parsed = _parse_json(where, text) if isinstance(text, str) else text
        calls = parsed if isinstance(parsed, list) else [parsed]
        for call in calls:
            if not isinstance(call, dict) or not isinstance(call.get("name"), str):
                raise HoneError(
                    DATASET_INVALID,
                    f"{where} holds {show_value(text)} where a call, an object with name and arguments, should be",
                )
        message |= {"content": "", "tool_calls": [{"type": "function", "function": call} for call in calls]}
    return message


def _check_tool_calls(where: str, calls: Any) -> None:
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise HoneError(
            DATASET_INVALID,
            f"{where} has the tool_calls {show_value(calls)} where a list of calls should be",
            remedy=f"Write a call as {CALL}.",
        )


def _check_learning_flags(where: str, message: Message) -> None:
    weight, train = message.get("weight", 1), message.get("train", True)
    if not isinstance(weight, int | float) or weight not in (0, 1):
        raise HoneError(
            DATASET_INVALID,
            f"{where} has the weight {show_value(weight)}, and a message is either learned (1) or not (0)",
            remedy="Set weight to 0 or 1, or remove it.",
        )
    if not isinstance(train, bool):
        raise HoneError(DATASET_INVALID, f"{where} has train: {show_value(train)} where true or false should be")
    if "weight" in message and "train" in message and bool(weight) != train:
        raise HoneError(
            DATASET_INVALID,
            f"{where} has weight {weight} and train: {str(train).lower()}, which contradict each other",
            remedy="Remove one of the two.",
        )


def _read_part(where: str, part: Any) -> dict[str, Any]:
    fields = {key: value for key, value in part.items() if value is not None} if isinstance(part, dict) else {}
    kind = fields.get("type")
    if kind == "text" and isinstance(fields.get("text"), str):
        return fields
    if isinstance(kind, str) and kind != "text":
        raise HoneError(
            DATASET_INVALID,
            f"{where} has a content part of type {show_value(kind)}, and only text is trained on",
            remedy='Leave such rows out, or keep the parts {"type": "text", "text": …} alone.',
        )
    raise HoneError(
        DATASET_INVALID,
        f'{where} has the content part {show_value(part)} where {{"type": "text", "text": …}} should be',
    )


def _check_that_something_replaces_content(where: str, message: Message) -> None:
    if any(message.get(key) for key in REPLACES_CONTENT) or message.get("tool_calls") == []:
        return
    raise HoneError(
        DATASET_INVALID,
        f"{where} has no content, and nothing in its place such as tool_calls",
        remedy="Give content, or leave the message out."
        + "".join(f" It has the key {key}: is that its content?" for key in ("text", "value") if key in message),
    )


def _read_history(where: str, value: Any) -> list[tuple[str, str]]:
    if value is None or value == "":
        return []
    if not isinstance(value, list):
        raise HoneError(
            DATASET_INVALID, f"{where} holds {show_value(value)} where a list of [question, answer] should be"
        )
    for turn in value:
        if not isinstance(turn, list) or len(turn) != 2 or not all(isinstance(text, str) for text in turn):
            raise HoneError(DATASET_INVALID, f"{where} holds {show_value(turn)} where [question, answer] should be")
    return [(question, answer) for question, answer in value]


def _get_arguments(call: dict[str, Any]) -> Any:
    function = call.get("function", call)
    return function.get("arguments") if isinstance(function, dict) else None


def _parse_json(where: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise HoneError(DATASET_INVALID, f"{where} holds {show_value(text)}, which is not JSON: {error}") from None
