"""What a row holds: text, prompt and completion, or messages. Pure: judging columns, checking and shaping rows."""

from typing import Any, Literal

from hone_api.reasons import DATASET_COLUMN_MISSING, DATASET_INVALID, HoneError

Format = Literal["text", "prompt-completion", "messages"]

COLUMNS: dict[Format, tuple[str, ...]] = {
    "messages": ("messages",),
    "prompt-completion": ("prompt", "completion"),
    "text": ("text",),
}
"""The columns that each format needs, in the order in which `auto` looks for them."""

_SHAREGPT_ROLES = {"human": "user", "gpt": "assistant", "system": "system"}


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
    if "messages" not in own_names and "conversations" in found:  # as ShareGPT spells it
        own_names["messages"] = "conversations"
    for form, needed in COLUMNS.items():
        if wanted in ("auto", form) and all(column in own_names for column in needed):
            return form, {column: own_names[column] for column in needed}
    if wanted == "auto":
        raise HoneError(
            DATASET_COLUMN_MISSING,
            f"The dataset has {_list(found)}, and needs text, or prompt and completion, or messages",
            remedy="Name the dataset's own columns in spec.dataset.columns, such as {text: body}.",
        )
    needed = COLUMNS[wanted]  # type: ignore[index]
    missing = [column for column in needed if column not in own_names]
    raise HoneError(
        DATASET_COLUMN_MISSING,
        f"spec.dataset.format is {wanted}, which needs {' and '.join(missing)}, and the dataset has {_list(found)}",
    )


def shape(where: str, row: dict[str, Any], columns: dict[str, str]) -> dict[str, Any]:
    """The row with the format's columns only, each of the type that it must have. Raises HoneError DatasetInvalid."""
    shaped: dict[str, Any] = {}
    for column, own in columns.items():
        if own not in row:
            raise HoneError(DATASET_INVALID, f"{where} has no column {own}, which the first row has")
        value = row[own]
        if column == "messages" or (column in ("prompt", "completion") and isinstance(value, list)):
            shaped[column] = _messages(f"{where}, column {own}", value)
        elif isinstance(value, str):
            shaped[column] = value
        else:
            raise HoneError(DATASET_INVALID, f"{where}, column {own} holds {_show(value)} where a string should be")
    if "prompt" in shaped and type(shaped["prompt"]) is not type(shaped["completion"]):
        raise HoneError(DATASET_INVALID, f"{where} has text in one of prompt and completion and messages in the other")
    return shaped


def _messages(where: str, value: Any) -> list[dict[str, str]]:
    if not isinstance(value, list) or not value:
        raise HoneError(DATASET_INVALID, f"{where} holds {_show(value)} where a list of messages should be")
    return [_message(f"{where}, message {number}", message) for number, message in enumerate(value, start=1)]


def _message(where: str, message: Any) -> dict[str, str]:
    if isinstance(message, dict) and "from" in message and "role" not in message:
        speaker = message["from"]
        message = {"role": _SHAREGPT_ROLES.get(speaker, speaker), "content": message.get("value")}
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
