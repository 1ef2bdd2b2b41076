"""What a row holds: text, prompt and completion, or messages. Pure: judging columns, checking and shaping rows."""

from typing import Any, Literal

from hone_api.reasons import DATASET_COLUMN_MISSING, DATASET_INVALID, HoneError

Format = Literal["text", "prompt-completion", "messages"]

SPELLINGS: list[tuple[Format, tuple[str, ...], tuple[str, ...]]] = [
    ("messages", ("messages",), ()),
    ("messages", ("conversations",), ()),  # ShareGPT
    ("prompt-completion", ("prompt", "completion"), ()),
    ("messages", ("instruction", "output"), ("input", "system")),  # Alpaca
    ("text", ("text",), ()),
]
"""Format, the columns that show it and those that may be there too, in the order in which `auto` looks for them."""

_SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}


def judge(wanted: str, renames: dict[str, str], found: set[str]) -> tuple[Format, dict[str, str]]:
    """The format, and the dataset's own column for each of its columns.

    `wanted` is spec.dataset.format, `renames` spec.dataset.columns, `found` the dataset's columns.
    Raises HoneError DatasetColumnMissing.
    """
    for column, own in renames.items():
        if own not in found:
            raise HoneError(
                DATASET_COLUMN_MISSING,
                f"spec.dataset.columns.{column} is {own}, and the dataset has {_list(found)}",
                remedy="Name a column that the dataset has.",
            )
    own_names = {column: column for column in found} | dict(renames)
    for form, needed, optional in SPELLINGS:
        if wanted in ("auto", form) and all(column in own_names for column in needed):
            return form, {column: own_names[column] for column in (*needed, *optional) if column in own_names}
    ways = " or ".join(" and ".join(needed) for form, needed, _ in SPELLINGS if wanted in ("auto", form))
    if wanted == "auto":
        raise HoneError(
            DATASET_COLUMN_MISSING,
            f"The dataset has {_list(found)}, and needs {ways}",
            remedy="Name the dataset's own columns in spec.dataset.columns, such as {text: body}.",
        )
    raise HoneError(
        DATASET_COLUMN_MISSING,
        f"spec.dataset.format is {wanted}, which needs {ways}, and the dataset has {_list(found)}",
    )


def shape(where: str, row: dict[str, Any], columns: dict[str, str]) -> dict[str, Any]:
    """The row with the format's columns only, each of the type that it must have. Raises HoneError DatasetInvalid."""
    for own in columns.values():
        if own not in row:
            raise HoneError(DATASET_INVALID, f"{where} has no column {own}, which the first row has")
    if "instruction" in columns:
        return {"messages": _alpaca(where, row, columns)}
    shaped: dict[str, Any] = {}
    for column, own in columns.items():
        value = row[own]
        if column in ("messages", "conversations"):
            shaped["messages"] = _messages(f"{where}, column {own}", value)
        elif column in ("prompt", "completion") and isinstance(value, list):
            shaped[column] = _messages(f"{where}, column {own}", value)
        else:
            shaped[column] = _text(where, own, value)
    if "prompt" in shaped and type(shaped["prompt"]) is not type(shaped["completion"]):
        raise HoneError(DATASET_INVALID, f"{where} has text in one of prompt and completion and messages in the other")
    return shaped


def _alpaca(where: str, row: dict[str, Any], columns: dict[str, str]) -> list[dict[str, str]]:
    """Instruction and input as the user's message, output as the assistant's."""
    texts = {
        column: "" if row[own] is None and column in ("input", "system") else _text(where, own, row[own])
        for column, own in columns.items()
    }
    asked = "\n\n".join(filter(None, (texts["instruction"], texts.get("input"))))
    system = [{"role": "system", "content": texts["system"]}] if texts.get("system") else []
    return [*system, {"role": "user", "content": asked}, {"role": "assistant", "content": texts["output"]}]


def _text(where: str, column: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    raise HoneError(DATASET_INVALID, f"{where}, column {column} holds {_show(value)} where a string should be")


def _messages(where: str, value: Any) -> list[dict[str, str]]:
    if not isinstance(value, list) or not value:
        raise HoneError(DATASET_INVALID, f"{where} holds {_show(value)} where a list of messages should be")
    return [_message(f"{where}, message {number}", message) for number, message in enumerate(value, start=1)]


def _message(where: str, message: Any) -> dict[str, str]:
    if isinstance(message, dict) and "from" in message and "role" not in message:
        speaker = message["from"]
        if speaker not in _SHAREGPT_ROLES:
            known = ", ".join(_SHAREGPT_ROLES)
            raise HoneError(DATASET_INVALID, f"{where} is from {_show(speaker)}, which is none of {known}")
        message = {"role": _SHAREGPT_ROLES[speaker], "content": message.get("value")}
    if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
        raise HoneError(
            DATASET_INVALID, f"{where} is {_show(message)} where an object with the strings role and content should be"
        )
    if message.get("tool_calls"):
        raise HoneError(
            DATASET_INVALID,
            f"{where} has tool_calls, which can't be trained on so far",
            remedy="Leave such rows out, or write the calls into content.",
        )
    return {"role": message["role"], "content": message["content"]}


def _list(columns: set[str]) -> str:
    return "the columns " + ", ".join(sorted(columns)) if columns else "no columns"


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
