"""Turn messages into a prompt's text with the chat template, and the text into tokens, both within limits.

Both run in a worker thread (workers.py): a template is a program that comes with the model, and the time to tokenize
grows with the text. So a text that can't fit is refused by its length, and a long one by its beginning. generate.py is
next.
"""

import ctypes
import inspect
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from transformers import PreTrainedTokenizerBase

from hone_server.generation import chat_template_bounds
from hone_server.protocol.bounds import is_unicode
from hone_server.protocol.errors import ApiError, make_context_error, make_prompt_length_error

log = logging.getLogger("hone_server")

MAX_TEMPLATE_SECONDS = 10.0
# Tokens of common text are shorter. So a beginning with this many characters for each token of the context shows
# whether the text is too long.
CHARACTERS_PER_TOKEN = 8
MIN_BEGINNING_CHARACTERS = 1 << 16
# A beginning cuts a word at its end, which adds fewer tokens than this to those of the full text.
CUT_TOKENS = 64

# What a template gets from the request and from the server. A client's own variables must not replace these.
RESERVED_VARIABLES = frozenset({"messages", *inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters})

# A text that no template has of its own.
ROLE_PROBE = "probe5f1c90"

_longest_tokens: WeakKeyDictionary[Any, int] = WeakKeyDictionary()


class TemplateTooSlow(Exception):
    """Raised inside a chat template that takes too long."""


def render_chat(
    tokenizer: Any, messages: list[dict[str, Any]], /, *, tools: list[dict[str, Any]] | None = None, **options: Any
) -> str:
    """Return the text that the chat template makes of the messages. Raises ApiError 400 if it fails in any way."""
    try:
        with _watchdog.limit_seconds(MAX_TEMPLATE_SECONDS):
            template = tokenizer.get_chat_template(tools=tools)
            return str(
                tokenizer.apply_chat_template(
                    _adapt_roles(tokenizer, messages, template),
                    tools=tools,
                    chat_template=template,
                    tokenize=False,
                    **options,
                )
            )
    except TemplateTooSlow:
        message = f"the chat template takes more than {MAX_TEMPLATE_SECONDS:g} s for these messages; send fewer"
    except Exception as error:  # a template can fail in any way that a program can
        reason = str(error).strip() or type(error).__name__
        message = f"the chat template refuses these messages: {reason}"
    raise ApiError(400, message, param="messages")


def _adapt_roles(tokenizer: Any, messages: list[dict[str, Any]], template: str) -> list[dict[str, Any]]:
    """Return the messages with `system` in place of `developer`, OpenAI's newer name, if the template does not show it.

    Such templates refuse the role, or leave its messages out without an error. A template that writes any role stays
    as it is, because a fine-tuned model has seen these prompts.
    """
    if all(one.get("role") != "developer" for one in messages):
        return messages
    probe = [{"role": "developer", "content": ROLE_PROBE}, {"role": "user", "content": "x"}]
    try:
        if ROLE_PROBE in str(tokenizer.apply_chat_template(probe, chat_template=template, tokenize=False)):
            return messages
    except TemplateTooSlow:
        raise
    except Exception:  # as in render_chat
        log.debug("the chat template refuses messages of role developer")
    return [{**one, "role": "system"} if one.get("role") == "developer" else one for one in messages]


def check_template_variables(variables: Mapping[str, Any]) -> None:
    """Raise ApiError 400 for a variable of `chat_template_kwargs` that the template gets from elsewhere."""
    for name in variables:
        if name in RESERVED_VARIABLES:
            message = f"chat_template_kwargs: {name!r} is not a variable of the template's own; leave it out"
            raise ApiError(400, message, param="chat_template_kwargs")


def encode_prompt(
    tokenizer: Any, text: str, max_model_len: int, max_token_characters: int, param: str, **options: Any
) -> list[int]:
    """Return the text's tokens. Raises ApiError 400 for one that does not fit, mostly without tokenizing all of it.

    longest_token: in characters; param: the field that the error names.
    """
    if not is_unicode(text):  # may come from JSON inside a text, such as the arguments of a tool call
        message = f"{param}: the prompt has half of a surrogate pair, which is not Unicode; cut text between characters"
        raise ApiError(400, message, param=param)
    most = max_model_len * max_token_characters
    if len(text) > most:
        raise make_prompt_length_error(len(text), most, max_model_len, max_token_characters, param)
    size = max(MIN_BEGINNING_CHARACTERS, CHARACTERS_PER_TOKEN * max_model_len)
    while size < len(text):
        count = len(tokenizer(text[:size], **options)["input_ids"])
        if count > max_model_len + CUT_TOKENS:
            raise make_context_error(max_model_len, count - CUT_TOKENS, 0, param, at_least=True)
        size *= 4
    tokens: list[int] = tokenizer(text, **options)["input_ids"]
    return tokens


def measure_longest_token(tokenizer: Any) -> int:
    """Return the length of the longest token in characters. Byte-level vocabularies have one for each byte."""
    if tokenizer not in _longest_tokens:
        _longest_tokens[tokenizer] = max(map(len, tokenizer.get_vocab()), default=1)
    return _longest_tokens[tokenizer]


class _Watchdog:
    """Raises TemplateTooSlow in threads whose time is over. It has a thread of its own; the event loop never waits."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._deadlines: dict[int, float] = {}
        self._interrupted: set[int] = set()
        self._has_limits = threading.Event()
        self._thread: threading.Thread | None = None

    @contextmanager
    def limit_seconds(self, seconds: float) -> Iterator[None]:
        """Limit the time of the body. A call of C code is interrupted only when it returns."""
        thread = threading.get_ident()
        with self._lock:
            self._deadlines[thread] = time.monotonic() + seconds
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="templates", daemon=True)
                self._thread.start()
        self._has_limits.set()
        try:
            yield
        finally:
            with self._lock:
                del self._deadlines[thread]
                if thread in self._interrupted:
                    self._interrupted.discard(thread)
                    _raise_in_thread(thread, None)  # cancel it if it was not raised yet

    def _run(self) -> None:
        while True:
            self._has_limits.wait()
            time.sleep(min(1.0, MAX_TEMPLATE_SECONDS / 10))
            with self._lock:
                now = time.monotonic()
                for thread, end in self._deadlines.items():
                    if now >= end and thread not in self._interrupted:
                        self._interrupted.add(thread)
                        _raise_in_thread(thread, TemplateTooSlow)
                if not self._deadlines:
                    self._has_limits.clear()


def _raise_in_thread(thread: int, error: type[Exception] | None) -> None:
    """Raise the error in another thread at its next instruction; None cancels an error that was not raised yet."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), error and ctypes.py_object(error))


_watchdog = _Watchdog()
chat_template_bounds.install_bounds()
