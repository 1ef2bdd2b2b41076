"""Log probabilities of an answer's tokens, kept in step with its text, and as OpenAI's two APIs show them. Pure."""

from dataclasses import dataclass
from typing import Any

from .sampling import TokenLogprob
from .text import Decode


@dataclass(frozen=True)
class Told:
    """One token of an answer with its text; `offset` is where that begins, in characters of the answer."""

    text: str
    logprob: float
    top: list[tuple[str, float]]
    offset: int


class LogprobStream:
    """Holds back the tokens whose text is held back, so that a stop string takes away both."""

    def __init__(self, token_text: Decode) -> None:
        self._token_text = token_text
        self._held: list[Told] = []

    def push(self, token: TokenLogprob, offset: int) -> None:
        top = [(self._text(other), logprob) for other, logprob in token.top]
        self._held.append(Told(self._text(token.token), token.logprob, top, offset))

    def tell(self, told: int, *, everything: bool = False) -> list[Told]:
        """The tokens that begin in the first `told` characters, or all that are left."""
        ready = [one for one in self._held if everything or one.offset < told]
        self._held = self._held[len(ready) :]
        return ready

    def _text(self, token: int) -> str:
        return self._token_text([token])


def chat_logprobs(told: list[Told]) -> dict[str, Any]:
    return {
        "content": [
            {**_entry(one.text, one.logprob), "top_logprobs": [_entry(text, logprob) for text, logprob in one.top]}
            for one in told
        ],
        "refusal": None,
    }


def completion_logprobs(told: list[Told]) -> dict[str, Any]:
    """Here the chosen token is always among the likeliest."""
    return {
        "tokens": [one.text for one in told],
        "token_logprobs": [one.logprob for one in told],
        "top_logprobs": [dict([*reversed(one.top), (one.text, one.logprob)]) for one in told],
        "text_offset": [one.offset for one in told],
    }


def _entry(text: str, logprob: float) -> dict[str, Any]:
    # A token that is a part of a character has no text of its own, and so its bytes are not known here.
    return {"token": text, "logprob": logprob, "bytes": None if "\ufffd" in text else list(text.encode())}
