"""Write text to a user's terminal, with nothing in it that controls the terminal.

Rows of a dataset, answers of a model, conditions, file names and manifests are written by others. A control character
in them could clear the screen, rename the window, or make a failure look like a success. All of Hone's output passes
`make_printable`: its own output through `print_line` (or the consoles of the CLI and the trainer, which use it), and
the output of Python and the libraries through the hooks of `make_output_safe`.
"""

import io
import logging
import re
import sys
import threading
import traceback
import warnings
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, TextIO

from hone_api.io.streams import is_standard, make_forgiving, open_missing_descriptors

# A secret with fewer characters may also be a part of a word.
_SHORT_CHARACTERS = 8
_UNPRINTABLE = re.compile(
    "["
    "\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters, apart from tab and line feed
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # marks and overrides of the writing direction
    "\u2028\u2029"  # separators that some terminals take as line ends
    "\ud800-\udfff"  # halves of characters, which no terminal's encoding has
    "\ufff9-\ufffb\U000e0001\U000e0020-\U000e007f"  # annotations and tags, which hide text
    "]"
)

_URL_USER = re.compile(r"(\b[a-zA-Z][-+.a-zA-Z0-9]*://)[^/\s\"']*@")
_URL_QUERY = re.compile(r"(\b[a-zA-Z][-+.a-zA-Z0-9]*://[^\s\"'?#]*)[?#][^\s\"']+")


def hide_url_credentials(text: str) -> str:
    """Return text in which URLs have neither user and password nor query and fragment, which may be a signature."""
    return _URL_QUERY.sub(r"\1?…", _URL_USER.sub(r"\1…@", text))


def hide_secrets(text: str, secrets: Iterable[str]) -> str:
    """Return text without these secrets, which a server may have quoted.

    A short one, such as a user's name, is only replaced where it is not a part of another word.
    """
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        before, after = (r"(?<!\w)", r"(?!\w)") if len(secret) < _SHORT_CHARACTERS else ("", "")
        text = re.sub(f"{before}{re.escape(secret)}{after}", "***", text)
    return text


def make_printable(text: str) -> str:
    """Return text with its control characters escaped, such as \\x1b. Line feeds and tabs stay."""
    return _UNPRINTABLE.sub(_write_out, text.replace("\r\n", "\n"))


def make_encodable(text: str) -> str:
    """Return text that UTF-8 can encode: the bytes of a file name that is not UTF-8 are escaped, such as \\udcff."""
    return text.encode("utf-8", "backslashreplace").decode()


def print_line(text: str = "", file: TextIO | None = None) -> None:
    """Print a line and flush it: on standard error, where a line that can't be written is lost, or in `file`."""
    if file is not None:
        print(make_printable(text), file=file, flush=True)
    elif sys.stderr is not None:
        with suppress(OSError, ValueError):
            print(make_printable(text), file=sys.stderr, flush=True)


def make_output_safe(*, is_stdout_a_log: bool = False) -> None:
    """Make the output of Python and libraries printable: logs, warnings, and tracebacks of uncaught errors.

    No write to standard error raises from now on; nor to standard output, unless it carries the program's result.
    """
    open_missing_descriptors()
    if is_standard(sys.stderr):
        sys.stderr = make_forgiving(sys.stderr, 2)
    if is_standard(sys.stdout) and (is_stdout_a_log or sys.stdout is None):
        sys.stdout = make_forgiving(sys.stdout, 1)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # characters that its encoding lacks are escaped, not an error
            stream.reconfigure(errors="backslashreplace")
    logging.setLogRecordFactory(_PrintableRecord)
    logging.Formatter.formatException = _format_exception  # type: ignore[method-assign, assignment]
    warnings.formatwarning = _format_warning
    sys.excepthook = lambda kind, error, trace: _print_uncaught(error)
    threading.excepthook = lambda arguments: _print_uncaught(arguments.exc_value)


class _PrintableRecord(logging.LogRecord):
    def getMessage(self) -> str:
        return make_printable(super().getMessage())


_formatted_exception = logging.Formatter.formatException
_formatted_warning = warnings.formatwarning


def _format_exception(formatter: logging.Formatter, info: Any) -> str:
    return make_printable(_formatted_exception(formatter, info))


def _format_warning(*arguments: Any, **more: Any) -> str:
    return make_printable(_formatted_warning(*arguments, **more))


def _print_uncaught(error: BaseException | None) -> None:
    print_line("".join(traceback.format_exception(error)).rstrip("\n"))


def _write_out(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
