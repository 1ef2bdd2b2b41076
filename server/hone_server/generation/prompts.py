"""Turn messages into a prompt's text with the chat template, and the text into tokens, both within limits.

Both run in a worker thread (workers.py): a template is a program that comes with the model, and the time to tokenize
grows with the text. So a text that can't fit is refused by its length, and a long one by its beginning. generate.py is
next.
"""

import ctypes
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from hone_server.generation import chat_template_bounds
from hone_server.protocol.bounds import is_unicode
from hone_server.protocol.errors import ApiError, context_exceeded, prompt_too_long

TEMPLATE_SECONDS = 10.0
# Tokens of common text are shorter. So a beginning with this many characters for each token of the context shows
# whether the text is too long.
CHARACTERS_A_TOKEN = 8
SHORTEST_BEGINNING = 1 << 16
# A beginning cuts a word at its end, which adds fewer tokens than this to those of the full text.
CUT_TOKENS = 64

_longest: WeakKeyDictionary[Any, int] = WeakKeyDictionary()


class TemplateTooSlow(Exception):
    """Raised inside a chat template that takes too long."""


def render_chat(tokenizer: Any, messages: list[dict[str, Any]], **options: Any) -> str:
    """Return the text that the chat template makes of the messages. Raises ApiError 400 if it fails in any way."""
    try:
        with _watch.limit(TEMPLATE_SECONDS):
            return str(tokenizer.apply_chat_template(messages, tokenize=False, **options))
    except TemplateTooSlow:
        message = f"the chat template takes more than {TEMPLATE_SECONDS:g} s for these messages; send fewer"
    except Exception as error:  # a template can fail in any way that a program can
        reason = str(error).strip() or type(error).__name__
        message = f"the chat template refuses these messages: {reason}"
    raise ApiError(400, message, param="messages")


def encode(tokenizer: Any, text: str, max_model_len: int, longest_token: int, param: str, **options: Any) -> list[int]:
    """Return the text's tokens. Raises ApiError 400 for one that does not fit, mostly without tokenizing all of it.

    longest_token: in characters; param: the field that the error names.
    """
    if not is_unicode(text):  # may come from JSON inside a text, such as the arguments of a tool call
        message = f"{param}: the prompt has half of a surrogate pair, which is not Unicode; cut text between characters"
        raise ApiError(400, message, param=param)
    most = max_model_len * longest_token
    if len(text) > most:
        raise prompt_too_long(len(text), most, max_model_len, longest_token, param)
    size = max(SHORTEST_BEGINNING, CHARACTERS_A_TOKEN * max_model_len)
    while size < len(text):
        count = len(tokenizer(text[:size], **options)["input_ids"])
        if count > max_model_len + CUT_TOKENS:
            raise context_exceeded(max_model_len, count - CUT_TOKENS, 0, param, at_least=True)
        size *= 4
    tokens: list[int] = tokenizer(text, **options)["input_ids"]
    return tokens


def longest_token(tokenizer: Any) -> int:
    """Return the length of the longest token in characters. Byte-level vocabularies have one for each byte."""
    if tokenizer not in _longest:
        _longest[tokenizer] = max(map(len, tokenizer.get_vocab()), default=1)
    return _longest[tokenizer]


class _Watch:
    """Raises TemplateTooSlow in threads whose time is over. It has a thread of its own; the event loop never waits."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ends: dict[int, float] = {}
        self._interrupted: set[int] = set()
        self._any = threading.Event()
        self._thread: threading.Thread | None = None

    @contextmanager
    def limit(self, seconds: float) -> Iterator[None]:
        """Limit the time of the body. A call of C code is interrupted only when it returns."""
        thread = threading.get_ident()
        with self._lock:
            self._ends[thread] = time.monotonic() + seconds
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="templates", daemon=True)
                self._thread.start()
        self._any.set()
        try:
            yield
        finally:
            with self._lock:
                del self._ends[thread]
                if thread in self._interrupted:
                    self._interrupted.discard(thread)
                    _raise_in(thread, None)  # cancel it if it was not raised yet

    def _run(self) -> None:
        while True:
            self._any.wait()
            time.sleep(min(1.0, TEMPLATE_SECONDS / 10))
            with self._lock:
                now = time.monotonic()
                for thread, end in self._ends.items():
                    if now >= end and thread not in self._interrupted:
                        self._interrupted.add(thread)
                        _raise_in(thread, TemplateTooSlow)
                if not self._ends:
                    self._any.clear()


def _raise_in(thread: int, error: type[Exception] | None) -> None:
    """Raise the error in another thread at its next instruction; None cancels an error that was not raised yet."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), error and ctypes.py_object(error))


_watch = _Watch()
chat_template_bounds.install()
