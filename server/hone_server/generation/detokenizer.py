"""Turn tokens into text, piece by piece: incremental detokenization and stop strings.

In: one token at a time, from generate.py. Out: the text that is certain so far. The bytes of an unfinished character,
and text that may be the beginning of a stop string, are held back. Does not import torch.
"""

from collections.abc import Callable, Sequence

# A character has fewer bytes than this, so more tokens are broken text. A longer wait would decode all of them for each
# new token.
MOST_UNFINISHED = 16

Decode = Callable[[Sequence[int]], str]


class Detokenizer:
    """Turns tokens into text as they come, holding back the bytes of an unfinished character.

    begins: where in the text that `push` returned the token's own text begins, after the text that was held back.
    """

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._tokens: list[int] = []
        self._start = 0  # decoding starts here, because a token's text can depend on the one before
        self._told = 0  # the text of the tokens before this one was returned already
        self.begins = 0

    def push(self, token: int) -> str:
        """Return the new text with this token; empty while a character is unfinished."""
        start, told = self._start, self._told
        has_held = len(self._tokens) > told
        self._tokens.append(token)
        text = self._new_text(finished=False)
        self.begins = 0
        if has_held and text:
            before = self._decode(self._tokens[start:told])
            # The token completed the character that was held back, or left it broken.
            held = self._decode(self._tokens[start:-1]).removeprefix(before)
            shorter = min(len(held), len(text))
            self.begins = next((place for place in range(shorter) if held[place] != text[place]), shorter)
        return text

    def flush(self) -> str:
        """Return the remaining text at the end, with the replacement character for an unfinished character."""
        return self._new_text(finished=True)

    def _new_text(self, finished: bool) -> str:
        before = self._decode(self._tokens[self._start : self._told]) if self._told > self._start else ""
        text = self._decode(self._tokens[self._start :])
        finished = finished or len(self._tokens) - self._told > MOST_UNFINISHED
        if len(text) <= len(before) or (text.endswith("\ufffd") and not finished):
            return ""
        self._start, self._told = self._told, len(self._tokens)
        return text[len(before) :]


class StopSet:
    """The stop strings of a request, prepared once for all of its answers.

    For each string, `borders` has, by matched length, how much still matches when the next character does not, as in
    the algorithm of Knuth, Morris and Pratt: a character costs the same however long the strings are.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self.stops = [stop for stop in dict.fromkeys(stops) if stop]
        self.borders = [_borders(stop) for stop in self.stops]
        self.firsts = frozenset(stop[0] for stop in self.stops)

    def __bool__(self) -> bool:
        return bool(self.stops)


class StopStrings:
    """Cuts text before the first complete stop string, and holds back text that could begin one."""

    def __init__(self, stops: StopSet) -> None:
        self._set = stops
        self._matched = [0] * len(stops.stops)
        self._held = ""
        self.found = False

    def push(self, text: str) -> str:
        """Return the text that is certain to come before any stop string."""
        if self.found:
            return ""
        if not self._held and self._set.firsts.isdisjoint(text):
            return text
        before = len(self._held)
        self._held += text
        for place, character in enumerate(text, before + 1):
            if complete := self._advance(character):
                self.found = True
                told, self._held = self._held[: place - complete], ""
                return told
        cut = len(self._held) - max(self._matched, default=0)
        told, self._held = self._held[:cut], self._held[cut:]
        return told

    def flush(self) -> str:
        """Return the text that was held back for a stop string that never came."""
        told, self._held = self._held, ""
        return told

    def _advance(self, character: str) -> int:
        """Take one character; return the length of the longest stop string that it completes, or 0."""
        complete = 0
        for index, stop in enumerate(self._set.stops):
            matched, borders = self._matched[index], self._set.borders[index]
            while matched and stop[matched] != character:
                matched = borders[matched - 1]
            matched += stop[matched] == character
            if matched == len(stop):
                complete = max(complete, matched)
                matched = 0
            self._matched[index] = matched
        return complete


def _borders(stop: str) -> list[int]:
    """Return the length of the longest proper suffix that is also a prefix, for each prefix of the string."""
    borders = [0]
    for character in stop[1:]:
        length = borders[-1]
        while length and stop[length] != character:
            length = borders[length - 1]
        borders.append(length + (stop[length] == character))
    return borders


NO_STOPS = StopSet()


class TextStream:
    """One answer's text: push tokens, send the text that this returns, flush at the end.

    stopped: whether a stop string came. `decoded` and `told` count characters: of all tokens so far, and of the text
    returned so far. begins: where the last token's own text begins.
    """

    def __init__(self, decode: Decode, stops: StopSet = NO_STOPS) -> None:
        self._detokenizer = Detokenizer(decode)
        self._stops = StopStrings(stops)
        self.decoded = self.told = self.begins = 0

    @property
    def stopped(self) -> bool:
        return self._stops.found

    def push(self, token: int) -> str:
        text = self._detokenizer.push(token)
        self.begins = self.decoded + self._detokenizer.begins
        self.decoded += len(text)
        return self._tell(self._stops.push(text))

    def flush(self) -> str:
        text = self._detokenizer.flush()
        self.decoded += len(text)
        last = self._stops.push(text)
        return self._tell(last if self._stops.found else last + self._stops.flush())

    def _tell(self, text: str) -> str:
        self.told += len(text)
        return text
