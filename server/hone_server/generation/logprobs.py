"""Match log probabilities to an answer's text, and write them as OpenAI's two APIs do. Pure.

In: tokens with log probabilities of engine/sampler.py and engine/prompt_logprobs.py. Out: `DecodedLogprobs`, released
together with their text, for http/formatting.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hone_server.engine.sampler import TokenLogprobs
from hone_server.generation.detokenizer import Decode, Detokenizer


@dataclass(frozen=True)
class DecodedLogprobs:
    """One token with its text.

    text_offset: where it begins, in characters of the answer. logprob: None for a prompt's first token. top: the
    likeliest tokens at its position: text, log probability and number.
    """

    text: str
    logprob: float | None
    top: list[tuple[str, float, int]]
    text_offset: int


class LogprobStream:
    """Holds back the tokens whose text is held back, so that a stop string removes both."""

    def __init__(self, token_text: Decode) -> None:
        self._token_text = token_text
        self._held: list[DecodedLogprobs] = []

    def push(self, token: TokenLogprobs, offset: int) -> None:
        self._held.append(_decode_logprobs(token, offset, self._token_text))

    def release(self, returned: int, *, everything: bool = False) -> list[DecodedLogprobs]:
        """Return the tokens that begin in the first `returned` characters, or all that are left if `everything`."""
        ready = [one for one in self._held if everything or one.text_offset < returned]
        self._held = self._held[len(ready) :]
        return ready


def decode_prompt_logprobs(
    prompt: Sequence[int],
    logprobs: Sequence[TokenLogprobs | None],
    decode: Decode,
    token_text: Decode,
    offsets: Sequence[int] | None = None,
) -> list[DecodedLogprobs]:
    """Return the tokens of a prompt. Without `offsets`, they are computed from the decoded text of the prompt."""
    texts: dict[int, str] = {}

    def decode_cached(tokens: Sequence[int]) -> str:
        [token] = tokens
        if token not in texts:
            texts[token] = token_text(tokens)
        return texts[token]

    offsets = _compute_decoded_offsets(prompt, decode) if offsets is None else offsets
    return [
        DecodedLogprobs(decode_cached([token]), None, [], offset)
        if logprob is None
        else _decode_logprobs(logprob, offset, decode_cached)
        for token, logprob, offset in zip(prompt, logprobs, offsets, strict=True)
    ]


def _compute_decoded_offsets(prompt: Sequence[int], decode: Decode) -> list[int]:
    offsets, offset, text = [], 0, Detokenizer(decode)
    for token in prompt:
        offsets.append(offset)
        offset += len(text.push(token))
    return offsets


def find_token_offsets(text: str, spans: Sequence[tuple[int, int]], texts: Sequence[str]) -> list[int]:
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


def estimate_token_offsets(text: str, texts: Sequence[str]) -> list[int]:
    """Return approximately where each token begins in the text, for tokenizers that do not report it."""
    offsets, offset = [], 0
    for own in texts:
        offsets.append(offset)
        found = next((one for one in (own, own.lstrip(" ")) if one and text.startswith(one, offset)), "")
        offset += len(found)
    return offsets


def split_logprobs(
    entries: list[DecodedLogprobs], text: str, max_entries: int
) -> list[tuple[list[DecodedLogprobs], str]]:
    """Return parts of at most this many tokens, each with its part of the text; joined, they equal the input."""
    starts = range(0, len(entries), max_entries)
    cuts = [
        0,
        *(min(entries[start].text_offset - entries[0].text_offset, len(text)) for start in starts[1:]),
        len(text),
    ]
    return [
        (entries[start : start + max_entries], text[before:after])
        for start, before, after in zip(starts, cuts, cuts[1:], strict=False)
    ]


def _decode_logprobs(token: TokenLogprobs, offset: int, token_text: Decode) -> DecodedLogprobs:
    top = [(token_text([other]), logprob, other) for other, logprob in token.top]
    return DecodedLogprobs(token_text([token.token_id]), token.logprob, top, offset)


def format_chat_logprobs(entries: list[DecodedLogprobs]) -> dict[str, Any]:
    return {
        "content": [
            {
                **_format_entry(one.text, one.logprob),
                "top_logprobs": [_format_entry(text, logprob) for text, logprob, _ in one.top],
            }
            for one in entries
        ],
        "refusal": None,
    }


def format_completion_logprobs(entries: list[DecodedLogprobs]) -> dict[str, Any]:
    """Return the log probabilities in the form of completions.

    The chosen token is always among the likeliest. A prompt's first token has null, as in OpenAI's API.
    """
    return {
        "tokens": [one.text for one in entries],
        "token_logprobs": [one.logprob for one in entries],
        "top_logprobs": [None if one.logprob is None else _index_by_text(one, one.logprob) for one in entries],
        "text_offset": [one.text_offset for one in entries],
    }


def _index_by_text(one: DecodedLogprobs, chosen: float) -> dict[str, float]:
    """Return the likeliest tokens by their text.

    Tokens that are parts of characters have no text of their own and share one. The first of these has the text as its
    key, the others have `token_id:NUMBER`, as in vLLM.
    """
    found = {one.text: chosen}
    is_chosen_added = False
    for text, logprob, token in one.top:
        if not is_chosen_added and (text, logprob) == (one.text, chosen):
            is_chosen_added = True
        else:
            found[text if text not in found else f"token_id:{token}"] = logprob
    return dict(sorted(found.items(), key=lambda pair: -pair[1]))


def _format_entry(text: str, logprob: float | None) -> dict[str, Any]:
    # A token that is a part of a character has no text of its own, so its bytes are unknown here.
    return {"token": text, "logprob": logprob, "bytes": None if "\ufffd" in text else list(text.encode())}
