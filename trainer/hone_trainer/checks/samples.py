"""Samples of rows for the checks that render or tokenize each row once more, when a dataset has too many for all.

The rows are spread over the full dataset, since a fault may begin anywhere: files follow each other. Rows of a new
shape are added, however few there are: a template treats a role, a key, a change of roles or a long conversation in its
own way, and a tokenizer the two characters between prompt and completion.
"""

import itertools
import random
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

from hone_trainer.data.formats import get_conversation

# Rows that are spread over the dataset.
SPREAD = 1000
OF_EACH_SHAPE = 3
# The number of different shapes of rows: at most as many rows are added as there are spread ones.
MOST_SHAPES = 300


@dataclass
class RowSampler:
    """Takes the rows of a dataset one by one, in their order, and chooses those to check."""

    rows: int = 0
    first_of_shapes: list[int] = field(default_factory=list)
    _shapes: dict[Hashable, int] = field(default_factory=dict)

    def add_row(self, row: dict[str, Any]) -> None:
        """Consider the next row."""
        shape = _get_shape(row)
        seen = self._shapes.get(shape, 0)
        if seen < OF_EACH_SHAPE and (seen or len(self._shapes) < MOST_SHAPES):
            self._shapes[shape] = seen + 1
            self.first_of_shapes.append(self.rows)
        self.rows += 1

    def choose(self) -> list[int]:
        """Return the numbers of the rows to check, in ascending order; the same for the same rows."""
        if self.rows <= SPREAD:
            return list(range(self.rows))
        chance = random.Random(0)  # a fixed distance might select the same kind of row each time
        edges = [number * self.rows // SPREAD for number in range(SPREAD + 1)]
        spread = [chance.randrange(low, high) for low, high in itertools.pairwise(edges)]
        return sorted({*spread, *self.first_of_shapes})


def _get_shape(row: dict[str, Any]) -> Hashable:
    prompt, completion = row.get("prompt"), row.get("completion")
    if isinstance(prompt, str) and isinstance(completion, str):
        return _get_character_class(prompt[-1:]), _get_character_class(completion[:1])
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


def _get_character_class(character: str) -> str:
    """Return the class of a character for a tokenizer: letters, digits, and every other one separately."""
    return "a" if character.isalpha() else "0" if character.isdigit() else character
