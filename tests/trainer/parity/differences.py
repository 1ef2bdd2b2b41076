"""Compare what Hone and TRL make of a case, and list the allowed differences: Hone then refuses or warns, and why.

Everything that is not on these lists must be equal, including the order of rows and the padding.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from hone_api.exit_codes import USER_MISTAKES
from hone_api.reasons import HoneError
from parity.learned import Case, Learned


@dataclass(frozen=True)
class Refusal:
    """A case that Hone refuses although TRL accepts it: the reason's name, a pattern of the sentence, and why."""

    reason: str
    pattern: str
    why: str


@dataclass(frozen=True)
class Change:
    """A case that Hone changes, with a warning: a pattern of the warning, why, and the change of a message."""

    warning: str
    why: str
    message: Callable[[Any], Any]


REFUSALS = [
    Refusal(
        "InvalidSpec",
        r"^spec\.training\.completionOnlyLoss is true, and the rows are (text|messages)",
        "TRL ignores the option for rows without a completion, and learns everything.",
    ),
    Refusal(
        "InvalidSpec",
        r"^spec\.training\.eosToken is left out, and the tokenizer has no end-of-sequence token",
        "Serving needs a token to stop at; TRL needs none for messages.",
    ),
    Refusal(
        "AllRowsTruncated",
        r"^spec\.training\.maxLength is \d+, which leaves no token to learn in any of \d+ rows",
        "TRL continues with no row, or with rows of which nothing is learned.",
    ),
    Refusal(
        "DatasetInvalid",
        r"^None of \d+ rows to (train|evaluate) on has a token to learn from",
        "TRL evaluates no row then, and packs rows of which nothing is learned.",
    ),
    Refusal(
        "DatasetInvalid",
        r"message \d+ .*(None|no content|null)",
        "A message without content and without anything in its place is a hole in the data; most templates print None.",
    ),
    Refusal(
        "DatasetInvalid",
        r"column \w+ holds .* where a string should be|message \d+ has the content .* where a string",
        "A number or another value in place of text is a mistake in the data, which templates print as Python does.",
    ),
    Refusal(
        "InvalidSpec",
        r"^spec\.training\.extra\.dataloaderDropLast is true, and the \d+ rows .* fill no batch",
        "TRL trains no step, and saves the model as it was.",
    ),
    Refusal(
        "DatasetInvalid",
        r"has messages with weight: 0 or train: false, which can't be left out of the loss",
        "The template writes other messages differently without this one: which tokens are its own is not known.",
    ),
    Refusal(
        "DatasetInvalid",
        r"holds \[\] where a list of messages should be",
        "TRL fails for an empty conversation in the first row, and learns an empty row in the others.",
    ),
    Refusal(
        "DatasetInvalid",
        r"sets tokenize, which is an argument of apply_chat_template",
        "TRL hands it on, and the rows become something else than tokens.",
    ),
    Refusal(
        "DatasetInvalid",
        r"column system is .* begin with another system message",
        "Two system prompts: the user has to choose.",
    ),
]


def join_parts(message: Any) -> Any:
    """Return the message with its parts of text as one."""
    if not isinstance(message, dict) or not isinstance(message.get("content"), list):
        return message
    return message | {"content": "\n".join(part["text"] for part in message["content"])}


CHANGES = [
    Change(
        "have content in parts, which the chat template does not take",
        "A template that takes strings would print the list, as Python writes it.",
        join_parts,
    ),
]

# What a refusal has to name: a field, a row, or the file.
A_PLACE = re.compile(r"spec\.\w+|rows\.\w+, (line|row) \d+|rows\.\w+ |chat template|The dataset has")


def change(case: Case, warnings: list[str]) -> Case:
    """Return the case with the changes that Hone reports."""
    for one in CHANGES:
        if any(re.search(one.warning, warning) for warning in warnings):
            rows = [
                {
                    name: [one.message(message) for message in value] if isinstance(value, list) else value
                    for name, value in row.items()
                }
                for row in case.rows
            ]
            case = replace(case, rows=rows)
    return case


def compare(ours: Learned | HoneError, theirs: Learned | Exception) -> None:
    """Raise AssertionError when the two differ and the difference is not on the lists."""
    if isinstance(ours, HoneError):
        check_refusal(ours, theirs)
        return
    if isinstance(theirs, Exception):
        raise AssertionError(f"TRL fails where Hone does not: {theirs!r}")
    for name in ("train", "evaluation", "first_row"):
        for difference in find_differences(getattr(ours, name), getattr(theirs, name), name):
            raise AssertionError(
                f"Hone and TRL differ, and no warning reports it: {difference}; warnings: {ours.warnings}"
            )


def check_refusal(ours: HoneError, theirs: Learned | Exception) -> None:
    """Raise AssertionError unless the refusal is a user's to correct, names a place, and TRL fails or it is listed."""
    refusal = f"{ours.reason.name}: {ours.format_message()}"
    if ours.reason.exit_code not in USER_MISTAKES:
        raise AssertionError(f"Hone fails with {refusal}")
    if not A_PLACE.search(ours.format_message()):
        raise AssertionError(f"Hone names neither a row nor a field: {refusal}")
    is_listed = any(ours.reason.name == one.reason and re.search(one.pattern, ours.message) for one in REFUSALS)
    if not isinstance(theirs, Exception) and not is_listed:
        raise AssertionError(f"Hone refuses what TRL takes: {refusal}")


def find_differences(ours: Any, theirs: Any, path: str) -> Iterator[str]:
    """Yield where two values made of lists and objects differ, first places first."""
    if isinstance(ours, dict) and isinstance(theirs, dict) and ours.keys() == theirs.keys():
        for key in ours:
            yield from find_differences(ours[key], theirs[key], f"{path}.{key}")
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for index, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            yield from find_differences(one, other, f"{path}[{index}]")
    elif ours != theirs:
        yield f"{path} is {ours!r:.300} in Hone and {theirs!r:.300} in TRL"
