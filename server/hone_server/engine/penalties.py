"""Change the scores of tokens before one is chosen: bias and penalties, by the formulas of OpenAI and vLLM."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Penalties:
    """One request's changes to the scores of tokens.

    presence and frequency: subtracted once, and per occurrence, for tokens of the answer; 0 is off.
    repetition: divides positive scores and multiplies negative ones of tokens in prompt or answer; 1 is off.
    bias: added to the scores of these tokens.
    """

    presence: float = 0.0
    frequency: float = 0.0
    repetition: float = 1.0
    bias: tuple[tuple[int, float], ...] = ()


NO_PENALTIES = Penalties()
# A smaller penalty has the same effect: tokens that occurred already win. Scores that are divided by this one stay
# within float32, even when the temperature divides them again.
MIN_REPETITION_PENALTY = 1e-25


def apply_penalties(logits: torch.Tensor, penalties: Penalties, prompt: Sequence[int], answer: Sequence[int]) -> None:
    """Change one row of logits (shape [vocab_size]) in place."""

    def make_indices(tokens: Sequence[int]) -> torch.Tensor:
        return torch.tensor(tokens, dtype=torch.long, device=logits.device)

    if penalties.bias:
        tokens, values = zip(*penalties.bias, strict=True)
        logits[make_indices(tokens)] += torch.tensor(values, dtype=logits.dtype, device=logits.device)
    if penalties.repetition != 1:
        seen = make_indices([*prompt, *answer]).unique()  # type: ignore[no-untyped-call]
        scores = logits[seen]
        repetition = max(penalties.repetition, MIN_REPETITION_PENALTY)
        logits[seen] = torch.where(scores > 0, scores / repetition, scores * repetition)
    if answer and (penalties.frequency or penalties.presence):
        answered, counts = make_indices(answer).unique(return_counts=True)  # type: ignore[no-untyped-call]
        logits[answered] -= penalties.frequency * counts + penalties.presence
