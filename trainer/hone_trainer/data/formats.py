"""Judge what the rows of a dataset hold, and shape each row: text, prompt and completion, or messages. Pure.

`dataset.load_rows` surveys the columns of all rows. `detect_layout` turns them into a RowLayout: which format, and
which column of the dataset is which column of the format. `shape` gives a row the columns that TRL reads. Columns that
are left over are reported, unless their names show that they describe the row. Next: `messages`, for what a message
holds.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from hone_api.reasons import DATASET_COLUMN_MISSING, DATASET_INVALID, INVALID_SPEC, HoneError

from hone_trainer.data.exact_numbers import keep_numbers, restore_numbers
from hone_trainer.data.messages import (
    MessageCounts,
    add_system,
    join_text_parts,
    read_alpaca,
    read_messages,
    read_template_arguments,
    read_text,
    read_tools,
    show_value,
)

RowFormat = Literal["text", "prompt-completion", "messages"]

# What a row may give to the chat template next to its messages.
CONVERSATION = ("system", "tools", "chat_template_kwargs")


@dataclass(frozen=True)
class Spelling:
    """A way to write a format: the columns that show it, and those that may be there too."""

    format: RowFormat
    needed: tuple[str, ...]
    optional: tuple[str, ...] = ()


# In the order in which `auto` looks for them.
SPELLINGS = [
    Spelling("messages", ("messages",), CONVERSATION),
    Spelling("messages", ("conversations",), CONVERSATION),  # ShareGPT
    Spelling("prompt-completion", ("prompt", "completion"), CONVERSATION),
    Spelling("messages", ("instruction", "output"), ("input", "history", *CONVERSATION)),  # Alpaca
    Spelling("text", ("text",)),
]

# Columns that describe a row and hold nothing to learn from: they are left out without a warning.
METADATA = frozenset(
    "__index_level_0__ _id author category categories chat_id conversation_hash conversation_id created created_at "
    "data_source dataset date domain file filename hash id idx index key lang language license line metadata meta "
    "model model_name origin path prompt_id provenance row_id score source split subset tag tags task task_id "
    "timestamp title token_count tokens topic turns turn uid updated_at url uuid".split()
)


# A table may have thousands of columns that are not used.
_REPORTED_COLUMNS = 10


@dataclass(frozen=True)
class RowLayout:
    """The layout of the rows. `columns` has the dataset's own name for each of the format's columns.

    `join_parts`: content in text parts becomes one string.
    """

    format: RowFormat
    columns: dict[str, str]
    join_parts: bool = False


def detect_layout(
    format_name: str,
    renames: dict[str, str],
    found: Mapping[str, int],
    first: dict[str, Any],
    *,
    join_parts: bool = False,
) -> RowLayout:
    """Return the layout of a dataset.

    `format_name` is spec.dataset.format, `renames` spec.dataset.columns, `found` how many rows have each column, and
    `first` the first row. Raises HoneError DatasetColumnMissing, InvalidSpec.
    """
    for column, own in renames.items():
        if own not in found:
            raise HoneError(
                DATASET_COLUMN_MISSING,
                f"spec.dataset.columns.{column} is {own}, and the dataset has {_list(found)}",
                remedy="Name a column that the dataset has.",
            )
    for own in renames.values():
        if (named := [column for column, other in renames.items() if other == own])[1:]:
            raise HoneError(
                INVALID_SPEC,
                f"spec.dataset.columns names {own} for {' and '.join(named)}",
                remedy="Name a column of the dataset once.",
            )
    own_names = {column: column for column in found} | renames
    spelling = _find_spelling(format_name, own_names, found)
    optional = spelling.optional
    if spelling.format == "prompt-completion" and not isinstance(first.get(own_names["prompt"]), list):
        optional = ()  # text has no chat template that would read them
    columns = {column: own_names[column] for column in (*spelling.needed, *optional) if column in own_names}
    for column, own in renames.items():
        if column not in columns:
            raise HoneError(
                INVALID_SPEC,
                f"spec.dataset.columns.{column} is {own}, and rows with {' and '.join(spelling.needed)}"
                f"{' as text' if spelling.optional and not optional else ''} have no use for {column}",
                remedy=f"Remove it, or change the rows: they can have {', '.join((*spelling.needed, *optional))}.",
            )
    return RowLayout(spelling.format, columns, join_parts)


def find_unused(layout: RowLayout, found: Mapping[str, int], rows: int) -> list[str]:
    """Return a warning for each column that holds something, is not used, and is not known as metadata."""
    used = set(layout.columns.values())
    unused = [column for column, count in found.items() if count and column not in used and _is_no_metadata(column)]
    read = f"not used: rows are read as {layout.format} from {', '.join(layout.columns.values())}"
    warnings = [
        f"{found[column]} of {rows} rows have the column {column}, which is {read}"
        for column in unused[:_REPORTED_COLUMNS]
    ]
    more = len(unused) - _REPORTED_COLUMNS
    return [*warnings, f"{more} more columns are {read}"] if more > 0 else warnings


def _is_no_metadata(column: str) -> bool:
    return column.lower() not in METADATA


def shape_row(
    where: str, row: dict[str, Any], layout: RowLayout, counts: MessageCounts | None = None
) -> dict[str, Any]:
    """Return the row with the columns that TRL reads, each of the type that it must have; add to `counts`.

    Raises HoneError DatasetInvalid.
    """
    columns = layout.columns
    for column in _find_needed(columns):
        if columns[column] not in row:
            raise HoneError(DATASET_INVALID, f"{where} has no column {columns[column]}, which other rows have")
    is_alpaca = "instruction" in columns
    shaped: dict[str, Any] = (
        {"messages": read_alpaca(where, row, columns)} if is_alpaca else _shape_columns(where, row, columns)
    )
    conversations = [column for column in ("messages", "prompt", "completion") if isinstance(shaped.get(column), list)]
    if not conversations:
        return shaped
    first = conversations[0]
    if "system" in columns:
        own = columns["system"]
        shaped[first] = add_system(f"{where}, column {own}", shaped[first], row.get(own))
    if "tools" in columns:
        shaped["tools"] = read_tools(f"{where}, column {columns['tools']}", row.get(columns["tools"]))
    if "chat_template_kwargs" in columns:
        own = columns["chat_template_kwargs"]
        shaped["chat_template_kwargs"] = read_template_arguments(f"{where}, column {own}", row.get(own))
    for column in conversations:
        if counts:
            counts.add(shaped[column])
        if layout.join_parts:
            shaped[column] = [join_text_parts(message) for message in shaped[column]]
    try:
        return {column: keep_numbers(value) for column, value in shaped.items()}
    except RecursionError:
        raise HoneError(DATASET_INVALID, f"{where} is nested too deeply to be stored") from None


def get_conversation(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Return all messages of a shaped row: of a pair, those of the prompt and then those of the completion."""
    messages: list[dict[str, Any]] = row["messages"] if "messages" in row else row["prompt"] + row["completion"]
    return [restore_numbers(message) for message in messages]


def get_template_arguments(row: dict[str, Any]) -> dict[str, Any]:
    """Return what a shaped row gives to the chat template next to its messages, as arguments of apply_chat_template."""
    arguments: dict[str, Any] = restore_numbers({"tools": row.get("tools"), **row.get("chat_template_kwargs", {})})
    return arguments


def check_kind(where: str, row: dict[str, Any], first: tuple[str, dict[str, Any]]) -> None:
    """Raise HoneError DatasetInvalid when of a shaped row and the first one, one has messages and the other text.

    TRL judges all rows by the first.
    """
    if "prompt" in row and type(row["prompt"]) is not type(first[1]["prompt"]):
        of_text, of_messages = (where, first[0]) if isinstance(row["prompt"], str) else (first[0], where)
        raise HoneError(
            DATASET_INVALID,
            f"The rows are of mixed kinds: prompt and completion are text in {of_text} and messages in {of_messages}",
            remedy="Write all rows in one way, or train on them in two jobs.",
        )


def _find_spelling(format_name: str, own_names: dict[str, str], found: Mapping[str, int]) -> Spelling:
    candidates = [spelling for spelling in SPELLINGS if format_name in ("auto", spelling.format)]
    for spelling in candidates:
        if all(column in own_names for column in spelling.needed):
            return spelling
    ways = " or ".join(" and ".join(spelling.needed) for spelling in candidates)
    if format_name == "auto":
        raise HoneError(
            DATASET_COLUMN_MISSING,
            f"The dataset has {_list(found)}, and needs {ways}",
            remedy="Name the dataset's own columns in spec.dataset.columns, such as {text: body}.",
        )
    raise HoneError(
        DATASET_COLUMN_MISSING,
        f"spec.dataset.format is {format_name}, which needs {ways}, and the dataset has {_list(found)}",
    )


def _find_needed(columns: dict[str, str]) -> tuple[str, ...]:
    return next(s.needed for s in SPELLINGS if all(column in columns for column in s.needed))


def _shape_columns(where: str, row: dict[str, Any], columns: dict[str, str]) -> dict[str, Any]:
    shaped: dict[str, Any] = {}
    for column in _find_needed(columns):
        own = columns[column]
        value = row[own]
        if column in ("messages", "conversations"):
            shaped["messages"] = read_messages(f"{where}, column {own}", value)
        elif column in ("prompt", "completion") and isinstance(value, list):
            shaped[column] = read_messages(f"{where}, column {own}", value)
        else:
            shaped[column] = read_text(where, own, value)
    if "prompt" in shaped and type(shaped["prompt"]) is not type(shaped["completion"]):
        raise HoneError(
            DATASET_INVALID,
            f"{where} has text in one of prompt and completion and messages in the other: "
            f"{show_value(shaped['prompt'])} and {show_value(shaped['completion'])}",
            remedy="Write both as strings, or both as lists of messages.",
        )
    return shaped


def _list(columns: Mapping[str, int]) -> str:
    return "the columns " + ", ".join(sorted(columns)) if columns else "no columns"
