"""What a model is given to learn, and the case that leads to it: the terms in which both sides are compared."""

import csv
import itertools
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

Form = Literal["text", "prompt-completion", "messages", "conversations", "alpaca"]
Batch = dict[str, Any]

IGNORED = -100


@dataclass(frozen=True)
class Case:
    """A dataset and the options to learn it with.

    `form` is the spelling that the rows are generated in, `tokenizer` and `template` are names in tokenizing.py,
    `columns` is spec.dataset.columns, `training` spec.training without the profile, `options` the other fields of
    spec.dataset.
    """

    form: Form
    rows: list[dict[str, Any]]
    tokenizer: str
    template: str | None
    ending: Literal["jsonl", "json", "csv"] = "jsonl"
    columns: dict[str, str] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> Path:
        """Write the rows into a file in `folder`, and return it."""
        path = folder / f"rows.{self.ending}"
        if self.ending == "csv":
            names = list(dict.fromkeys(name for row in self.rows for name in row))
            with path.open("w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, names)
                writer.writeheader()
                writer.writerows(self.rows)
        elif self.ending == "json":
            path.write_text(json.dumps(self.rows), encoding="utf-8")
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in self.rows), encoding="utf-8")
        return path


@dataclass(frozen=True)
class Learned:
    """The batches of the first epoch and of an evaluation, and the first row in pieces.

    Each piece comes with whether it is learned. `warnings` are those that the user gets.
    """

    train: list[Batch]
    evaluation: list[Batch] | None
    first_row: list[tuple[str, bool]]
    warnings: list[str]


def read_batches(loader: Iterable[dict[str, Any]]) -> list[Batch]:
    """Return the batches of a loader as lists and numbers."""
    return [
        {name: value.tolist() if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
        for batch in loader
    ]


def split_by_loss(tokens: list[int], labels: list[int], tokenizer: Any) -> list[tuple[str, bool]]:
    """Return the text of a row in pieces: each with whether its tokens are learned."""
    pieces = itertools.groupby(zip(tokens, labels, strict=True), key=lambda pair: pair[1] != IGNORED)
    return [(tokenizer.decode([token for token, _ in pairs]), learned) for learned, pairs in pieces]
