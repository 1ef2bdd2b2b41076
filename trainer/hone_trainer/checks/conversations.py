"""Faults in rows, before tokens: turns of unknown roles, turns and completions without text, missing answers.

One pass over the rows (`survey_conversations`) records which row has which fault and draws the sample for costlier
checks (`samples`). `tokenized` turns the findings into warnings.
"""

from __future__ import annotations  # array is generic for type checkers alone

import difflib
from array import array
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from datasets import Dataset

from hone_trainer.checks.contents import is_empty
from hone_trainer.checks.findings import Finding, make_findings
from hone_trainer.checks.samples import RowSampler
from hone_trainer.data.formats import get_conversation
from hone_trainer.data.messages import is_learned

Row = dict[str, Any]

ROLES = ("system", "developer", "user", "assistant", "tool")
# Names that other layouts and products give to roles.
_SYNONYMS = {
    "human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "ai": "assistant",
    "function": "tool",
    "observation": "tool",
}
# Unknown roles that get a sentence each.
MOST_ROLES = 5
BATCH = 1000


def _make_numbers() -> array[int]:
    """Make an empty list of numbers of rows, with 8 bytes for each."""
    return array("q")


@dataclass
class ConversationSurvey:
    """Rows by property, as numbers of rows; `answered` has a 1 for each row that ends with an answer, else a 0."""

    answered: bytearray = field(default_factory=bytearray)
    unknown_roles: dict[str, array[int]] = field(default_factory=lambda: defaultdict(_make_numbers))
    without_answer: array[int] = field(default_factory=_make_numbers)
    empty_turn: array[int] = field(default_factory=_make_numbers)
    empty_completion: array[int] = field(default_factory=_make_numbers)
    empty_text: array[int] = field(default_factory=_make_numbers)
    sampler: RowSampler = field(default_factory=RowSampler)

    def add_row(self, row: Row) -> None:
        """Consider the next row."""
        index = len(self.answered)
        self.sampler.add_row(row)
        if isinstance(row.get("text"), str):
            self._add_if(not row["text"].strip(), self.empty_text, index)
            self.answered.append(True)
        elif isinstance(row.get("completion"), str):
            self._add_if(not row["completion"].strip(), self.empty_completion, index)
            self.answered.append(True)
        else:
            self._add_messages(row, index)

    def ends_with_answer(self) -> np.ndarray:
        """Return for each row whether it ends with an answer, or is text."""
        return np.frombuffer(bytes(self.answered), bool)

    def ends_with_nothing(self) -> np.ndarray:
        """Return for each row whether what it teaches may be empty."""
        found = np.zeros(len(self.answered), bool)
        for rows in (self.empty_text, self.empty_completion, self.empty_turn):
            found[np.frombuffer(bytes(rows), np.int64)] = True
        return found

    def _add_messages(self, row: Row, index: int) -> None:
        messages = get_conversation(row)
        for role in {message["role"] for message in messages} - set(ROLES):
            self.unknown_roles[role].append(index)
        answers = row.get("completion", messages)
        turns = [message for message in answers if message["role"] == "assistant"]
        self._add_if(not turns, self.without_answer, index)
        self._add_if(any(is_learned(turn) and is_empty(turn) for turn in turns), self.empty_turn, index)
        self.answered.append(messages[-1]["role"] == "assistant" and is_learned(messages[-1]))

    @staticmethod
    def _add_if(condition: bool, rows: array[int], index: int) -> None:
        if condition:
            rows.append(index)


def survey_conversations(given: Dataset) -> ConversationSurvey:
    """Read every row."""
    turns = ConversationSurvey()
    for row in iterate_rows(given):
        turns.add_row(row)
    return turns


def iterate_rows(given: Dataset) -> Iterator[Row]:
    """Yield the rows, which is faster by the batch."""
    for batch in given.iter(BATCH):
        columns: dict[str, list[object]] = batch
        yield from (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))


def find_empty_rows(turns: ConversationSurvey) -> list[Finding]:
    """Return what is empty, or has no answer."""
    return [
        *make_findings(turns.empty_text, "have no text but whitespace: the model learns to write nothing"),
        *make_findings(turns.empty_completion, "have an empty completion: the model learns to answer nothing"),
        *make_findings(turns.empty_turn, "have an empty assistant message: the model learns to answer nothing"),
        *make_findings(turns.without_answer, "have no assistant message, and so no answer to learn"),
    ]


def find_unknown_roles(turns: ConversationSurvey, template: str, assistant_only: bool) -> list[Finding]:
    """Return a finding for each role that neither Hone nor the template knows, or that looks like another one."""
    found = []
    for role, rows in sorted(turns.unknown_roles.items(), key=lambda item: -len(item[1])):
        meant = suggest_role(role)
        if _mentions_role(template, role) and meant not in ("user", "assistant"):
            continue
        hint = f"did you mean {meant}?" if meant else f"known are {', '.join(ROLES)}"
        lost = "; with assistantOnlyLoss nothing of them is learned" if assistant_only else ""
        found += make_findings(rows, f"have messages of the unknown role {role!r}: {hint}{lost}")
    if len(found) > MOST_ROLES:
        more = f", and {len(found) - MOST_ROLES} more unknown roles are not shown"
        last = found[MOST_ROLES - 1]
        found[MOST_ROLES - 1 :] = [Finding(last.count, last.first, last.text + more)]
    return found


def suggest_role(role: str) -> str | None:
    """Return the known role that an unknown one probably means."""
    name = role.strip().lower()
    if name in ROLES:
        return name
    if name in _SYNONYMS:
        return _SYNONYMS[name]
    return next(iter(difflib.get_close_matches(name, ROLES, n=1, cutoff=0.75)), None)


def _mentions_role(template: str, role: str) -> bool:
    """Return whether the template has the role as a string of its own."""
    return f"'{role}'" in template or f'"{role}"' in template
