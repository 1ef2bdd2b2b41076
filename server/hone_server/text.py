"""Tokens to text, piece by piece: incremental detokenization and stop strings. No torch here."""

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]


class Detokenizer:
    """Turns tokens into text as they come, holding back the bytes of an unfinished character."""

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._tokens: list[int] = []
        self._start = 0  # decoding starts here, because a token's text can depend on the one before
        self._told = 0  # tokens before this one are already told

    def push(self, token: int) -> str:
        """The new text that this token brings; empty while a character is unfinished."""
        self._tokens.append(token)
        return self._new_text(finished=False)

    def flush(self) -> str:
        """What is left at the end, an unfinished character as the replacement character."""
        return self._new_text(finished=True)

    def _new_text(self, finished: bool) -> str:
        before = self._decode(self._tokens[self._start : self._told]) if self._told > self._start else ""
        text = self._decode(self._tokens[self._start :])
        if len(text) <= len(before) or (text.endswith("\ufffd") and not finished):
            return ""
        self._start, self._told = self._told, len(self._tokens)
        return text[len(before) :]


class StopStrings:
    """Cuts text before the first stop string, and holds back what could be the beginning of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.found = False

    def push(self, text: str) -> str:
        """The text that is safe to tell now."""
        if self.found or not self._stops:
            return "" if self.found else text
        self._held += text
        places = [place for place in (self._held.find(stop) for stop in self._stops) if place >= 0]
        if places:
            self.found = True
            told, self._held = self._held[: min(places)], ""
            return told
        held = max(_overlap(self._held, stop) for stop in self._stops)
        cut = len(self._held) - held
        told, self._held = self._held[:cut], self._held[cut:]
        return told

    def flush(self) -> str:
        """What was held back for a stop string that never came."""
        told, self._held = self._held, ""
        return told


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of the text that begins the stop string, without being all of it."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)


class TextStream:
    """One answer's text: push tokens, tell what comes out, flush at the end. `stopped` says a stop string came.

    `decoded` and `told` count characters: what the tokens so far have made, and what of it has been told.
    """

    def __init__(self, decode: Decode, stops: Sequence[str] = ()) -> None:
        self._detokenizer = Detokenizer(decode)
        self._stops = StopStrings(stops)
        self.decoded = self.told = 0

    @property
    def stopped(self) -> bool:
        return self._stops.found

    def push(self, token: int) -> str:
        text = self._detokenizer.push(token)
        self.decoded += len(text)
        return self._tell(self._stops.push(text))

    def flush(self) -> str:
        last = self._stops.push(self._detokenizer.flush())
        return self._tell(last if self._stops.found else last + self._stops.flush())

    def _tell(self, text: str) -> str:
        self.told += len(text)
        return text
