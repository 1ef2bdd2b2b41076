"""Match log probabilities to an answer's text, and write them as OpenAI's two APIs do. Pure.

In: tokens with log probabilities of engine/sampler.py and engine/prompt_logprobs.py. Out: `Told` entries, released
together with their text, for http/formatting.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hone_server.engine.sampler import TokenLogprob
from hone_server.generation.detokenizer import Decode, Detokenizer


@dataclass(frozen=True)
class Told:
    """One token with its text.

    offset: where it begins, in characters of the answer. logprob: None for a prompt's first token. top: the likeliest
    tokens at its position: text, log probability and number.
    """

    text: str
    logprob: float | None
    top: list[tuple[str, float, int]]
    offset: int


class LogprobStream:
    """Holds back the tokens whose text is held back, so that a stop string removes both."""

    def __init__(self, token_text: Decode) -> None:
        self._token_text = token_text
        self._held: list[Told] = []

    def push(self, token: TokenLogprob, offset: int) -> None:
        self._held.append(_told(token, offset, self._token_text))

    def tell(self, told: int, *, everything: bool = False) -> list[Told]:
        """Return the tokens that begin in the first `told` characters, or all that are left if `everything`."""
        ready = [one for one in self._held if everything or one.offset < told]
        self._held = self._held[len(ready) :]
        return ready


def tell_prompt(
    prompt: Sequence[int],
    logprobs: Sequence[TokenLogprob | None],
    decode: Decode,
    token_text: Decode,
    offsets: Sequence[int] | None = None,
) -> list[Told]:
    """Return the tokens of a prompt. Without `offsets`, they are computed from the decoded text of the prompt."""
    texts: dict[int, str] = {}

    def text_of(tokens: Sequence[int]) -> str:
        [token] = tokens
        if token not in texts:
            texts[token] = token_text(tokens)
        return texts[token]

    offsets = _decoded_offsets(prompt, decode) if offsets is None else offsets
    return [
        Told(text_of([token]), None, [], offset) if logprob is None else _told(logprob, offset, text_of)
        for token, logprob, offset in zip(prompt, logprobs, offsets, strict=True)
    ]


def _decoded_offsets(prompt: Sequence[int], decode: Decode) -> list[int]:
    offsets, offset, text = [], 0, Detokenizer(decode)
    for token in prompt:
        offsets.append(offset)
        offset += len(text.push(token))
    return offsets


def place_tokens(text: str, spans: Sequence[tuple[int, int]], texts: Sequence[str]) -> list[int]:
    """Return where each token begins in the text that was tokenized.

    `spans` are the tokenizer's own, and empty for tokens that it adds, such as one for the beginning; `texts` are the
    tokens' texts. Some tokenizers leave spaces out of the spans.
    """
    offsets, end = [], 0
    for (start, stop), own in zip(spans, texts, strict=True):
        if start >= stop:
            offsets.append(end)
            end += len(own) if own.isspace() and text.startswith(own, end) else 0
            continue
        is_trimmed = start > end and own.startswith(text[end:start])
        offsets.append(end if is_trimmed else start)
        end = max(end, stop)
    return offsets


def search_tokens(text: str, texts: Sequence[str]) -> list[int]:
    """Return approximately where each token begins in the text, for tokenizers that do not report it."""
    offsets, offset = [], 0
    for own in texts:
        offsets.append(offset)
        found = next((one for one in (own, own.lstrip(" ")) if one and text.startswith(one, offset)), "")
        offset += len(found)
    return offsets


def split_told(told: list[Told], text: str, most: int) -> list[tuple[list[Told], str]]:
    """Return parts of at most this many tokens, each with its part of the text; joined, they equal the input."""
    starts = range(0, len(told), most)
    cuts = [0, *(min(told[start].offset - told[0].offset, len(text)) for start in starts[1:]), len(text)]
    return [
        (told[start : start + most], text[before:after])
        for start, before, after in zip(starts, cuts, cuts[1:], strict=False)
    ]


def _told(token: TokenLogprob, offset: int, token_text: Decode) -> Told:
    top = [(token_text([other]), logprob, other) for other, logprob in token.top]
    return Told(token_text([token.token]), token.logprob, top, offset)


def chat_logprobs(told: list[Told]) -> dict[str, Any]:
    return {
        "content": [
            {**_entry(one.text, one.logprob), "top_logprobs": [_entry(text, logprob) for text, logprob, _ in one.top]}
            for one in told
        ],
        "refusal": None,
    }


def completion_logprobs(told: list[Told]) -> dict[str, Any]:
    """Return the log probabilities in the form of completions.

    The chosen token is always among the likeliest. A prompt's first token has null, as in OpenAI's API.
    """
    return {
        "tokens": [one.text for one in told],
        "token_logprobs": [one.logprob for one in told],
        "top_logprobs": [None if one.logprob is None else _by_text(one, one.logprob) for one in told],
        "text_offset": [one.offset for one in told],
    }


def _by_text(one: Told, chosen: float) -> dict[str, float]:
    """Return the likeliest tokens by their text.

    Tokens that are parts of characters have no text of their own and share one. The first of these has the text as its
    key, the others have `token_id:NUMBER`, as in vLLM.
    """
    found = {one.text: chosen}
    is_chosen_told = False
    for text, logprob, token in one.top:
        if not is_chosen_told and (text, logprob) == (one.text, chosen):
            is_chosen_told = True
        else:
            found[text if text not in found else f"token_id:{token}"] = logprob
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))


def _entry(text: str, logprob: float | None) -> dict[str, Any]:
    # A token that is a part of a character has no text of its own, so its bytes are unknown here.
    return {"token": text, "logprob": logprob, "bytes": None if "\ufffd" in text else list(text.encode())}
