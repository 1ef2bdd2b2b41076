"""Turn tokens into text, piece by piece: incremental detokenization and stop strings.

In: one token at a time, from generate.py. Out: the text that is certain so far. The bytes of an unfinished character,
and text that may be the beginning of a stop string, are held back. Does not import torch.
"""

from collections.abc import Callable, Sequence

# A character has fewer bytes than this, so more tokens are broken text. A longer wait would decode all of them for each
# new token.
MAX_UNFINISHED_TOKENS = 16

Decode = Callable[[Sequence[int]], str]


class Detokenizer:
    """Turns tokens into text as they come, holding back the bytes of an unfinished character.

    token_start: where in the text that `push` returned the token's own text begins, after the text that was held back.
    """

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._tokens: list[int] = []
        self._context_start = 0  # decoding starts here, because a token's text can depend on the one before
        self._returned = 0  # the text of the tokens before this one was returned already
        self.token_start = 0

    def push(self, token: int) -> str:
        """Return the new text with this token; empty while a character is unfinished."""
        start, returned = self._context_start, self._returned
        has_held = len(self._tokens) > returned
        self._tokens.append(token)
        text = self._decode_new_text(finished=False)
        self.token_start = 0
        if has_held and text:
            before = self._decode(self._tokens[start:returned])
            # The token completed the character that was held back, or left it broken.
            held = self._decode(self._tokens[start:-1]).removeprefix(before)
            common_length = min(len(held), len(text))
            self.token_start = next(
                (place for place in range(common_length) if held[place] != text[place]), common_length
            )
        return text

    def flush(self) -> str:
        """Return the remaining text at the end, with the replacement character for an unfinished character."""
        return self._decode_new_text(finished=True)

    def _decode_new_text(self, finished: bool) -> str:
        before = (
            self._decode(self._tokens[self._context_start : self._returned])
            if self._returned > self._context_start
            else ""
        )
        text = self._decode(self._tokens[self._context_start :])
        finished = finished or len(self._tokens) - self._returned > MAX_UNFINISHED_TOKENS
        if len(text) <= len(before) or (text.endswith("\ufffd") and not finished):
            return ""
        self._context_start, self._returned = self._returned, len(self._tokens)
        return text[len(before) :]


class StopStringSet:
    """The stop strings of a request, prepared once for all of its answers.

    For each string, `failure_tables` has, by matched length, how much still matches when the next character does not,
    as in the algorithm of Knuth, Morris and Pratt: a character costs the same however long the strings are.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self.stops = [stop for stop in dict.fromkeys(stops) if stop]
        self.failure_tables = [_compute_failure_table(stop) for stop in self.stops]
        self.first_characters = frozenset(stop[0] for stop in self.stops)

    def __bool__(self) -> bool:
        return bool(self.stops)


class StopStringMatcher:
    """Cuts text before the first complete stop string, and holds back text that could begin one."""

    def __init__(self, stops: StopStringSet) -> None:
        self._set = stops
        self._matched = [0] * len(stops.stops)
        self._held = ""
        self.is_found = False

    def push(self, text: str) -> str:
        """Return the text that is certain to come before any stop string."""
        if self.is_found:
            return ""
        if not self._held and self._set.first_characters.isdisjoint(text):
            return text
        before = len(self._held)
        self._held += text
        for place, character in enumerate(text, before + 1):
            if complete := self._advance(character):
                self.is_found = True
                certain, self._held = self._held[: place - complete], ""
                return certain
        cut = len(self._held) - max(self._matched, default=0)
        certain, self._held = self._held[:cut], self._held[cut:]
        return certain

    def flush(self) -> str:
        """Return the text that was held back for a stop string that never came."""
        held, self._held = self._held, ""
        return held

    def _advance(self, character: str) -> int:
        """Take one character; return the length of the longest stop string that it completes, or 0."""
        complete = 0
        for index, stop in enumerate(self._set.stops):
            matched, borders = self._matched[index], self._set.failure_tables[index]
            while matched and stop[matched] != character:
                matched = borders[matched - 1]
            matched += stop[matched] == character
            if matched == len(stop):
                complete = max(complete, matched)
                matched = 0
            self._matched[index] = matched
        return complete


def _compute_failure_table(stop: str) -> list[int]:
    """Return the length of the longest proper suffix that is also a prefix, for each prefix of the string."""
    table = [0]
    for character in stop[1:]:
        length = table[-1]
        while length and stop[length] != character:
            length = table[length - 1]
        table.append(length + (stop[length] == character))
    return table


NO_STOPS = StopStringSet()


class TextStream:
    """One answer's text: push tokens, send the text that this returns, flush at the end.

    is_stopped: whether a stop string came. `decoded` and `returned` count characters: of all tokens so far, and of the
    text returned so far. token_start: where the last token's own text begins.
    """

    def __init__(self, decode: Decode, stops: StopStringSet = NO_STOPS) -> None:
        self._detokenizer = Detokenizer(decode)
        self._stops = StopStringMatcher(stops)
        self.decoded = self.returned = self.token_start = 0

    @property
    def is_stopped(self) -> bool:
        return self._stops.is_found

    def push(self, token: int) -> str:
        text = self._detokenizer.push(token)
        self.token_start = self.decoded + self._detokenizer.token_start
        self.decoded += len(text)
        return self._count_returned(self._stops.push(text))

    def flush(self) -> str:
        text = self._detokenizer.flush()
        self.decoded += len(text)
        last = self._stops.push(text)
        return self._count_returned(last if self._stops.is_found else last + self._stops.flush())

    def _count_returned(self, text: str) -> str:
        self.returned += len(text)
        return text
