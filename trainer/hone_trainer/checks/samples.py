"""Which rows the checks look at that render or tokenize each row once more, where a dataset has too many for all.

The rows are spread over the full dataset, since what is wrong may begin anywhere: files follow each other. Rows of a
shape that was not seen before are added, however few there are: a template treats a role, a key, a change of roles or a
long conversation in its own way, and a tokenizer the two characters between prompt and completion.
"""

import itertools
import random
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

from hone_trainer.data.formats import get_conversation

SPREAD = 1000
"""Rows that are spread over the dataset."""
OF_EACH_SHAPE = 3
MOST_SHAPES = 300
"""Shapes of rows that are told apart: as many rows are added as there are spread ones, at most."""


@dataclass
class Sampler:
    """Takes the rows of a dataset one by one, in their order, and chooses those to look at."""

    rows: int = 0
    first_of_shapes: list[int] = field(default_factory=list)
    _shapes: dict[Hashable, int] = field(default_factory=dict)

    def add_row(self, row: dict[str, Any]) -> None:
        """Look at the next row."""
        shape = _shape_of(row)
        seen = self._shapes.get(shape, 0)
        if seen < OF_EACH_SHAPE and (seen or len(self._shapes) < MOST_SHAPES):
            self._shapes[shape] = seen + 1
            self.first_of_shapes.append(self.rows)
        self.rows += 1

    def choose(self) -> list[int]:
        """Return the numbers of the rows to look at, in ascending order; the same for the same rows."""
        if self.rows <= SPREAD:
            return list(range(self.rows))
        chance = random.Random(0)  # a fixed distance might meet the same kind of row each time
        edges = [number * self.rows // SPREAD for number in range(SPREAD + 1)]
        spread = [chance.randrange(low, high) for low, high in itertools.pairwise(edges)]
        return sorted({*spread, *self.first_of_shapes})


def _shape_of(row: dict[str, Any]) -> Hashable:
    prompt, completion = row.get("prompt"), row.get("completion")
    if isinstance(prompt, str) and isinstance(completion, str):
        return _kind_of(prompt[-1:]), _kind_of(completion[:1])
    if "messages" not in row and "prompt" not in row:
        return None
    messages = get_conversation(row)
    turns = set()
    before = None
    for turn in messages:
        turns.add((before, turn["role"], *sorted(key for key, value in turn.items() if value)))
        before = turn["role"]
    arguments = tuple(row.get("chat_template_kwargs") or ())
    return frozenset(turns), len(messages).bit_length(), bool(row.get("tools")), arguments


def _kind_of(character: str) -> str:
    """Return what a tokenizer tells apart: letters, digits, and each other character by itself."""
    return "a" if character.isalpha() else "0" if character.isdigit() else character
