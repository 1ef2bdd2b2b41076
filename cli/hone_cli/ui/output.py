"""All output for the user: lines, hints, answers, the block for a failure, and consoles.

Nothing else in this package prints (a test checks it), so that text written by others can't control the terminal.
"""

import logging
import os
import sys
import traceback
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

import typer
from hone.errors import ClientError, HoneError
from hone.notices import logger
from hone_api.io.terminal import make_printable

if TYPE_CHECKING:
    from rich.console import Console


class NoticeHandler(logging.Handler):
    """Prints the notices of the client."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            print_line(record.getMessage(), err=True)
        else:
            print_hint(record.getMessage())


_verbose = False


def set_verbose(value: bool) -> bool:
    """Show tracebacks from now on, if `value`."""
    global _verbose
    _verbose = _verbose or value
    return value


def print_line(
    text: str, *, color: Literal["red", "green"] | None = None, dim: bool = False, err: bool = False
) -> None:
    """Print a line on stdout, or on stderr, in a color if it is a terminal."""
    stream = sys.stderr if err else sys.stdout
    shown = make_printable(text)
    if stream.isatty() and not os.environ.get("NO_COLOR"):
        shown = typer.style(shown, fg=color, dim=dim or None)
    print(shown, file=stream, flush=True)


def print_failure(error: HoneError | OSError) -> None:
    """Print the block for a failure on stderr; with --verbose its traceback, too."""
    if _verbose:
        print_line("".join(traceback.format_exception(error)).rstrip("\n"), err=True)
    if isinstance(error, ClientError):
        title, remedy = error.message, error.remedy
    elif isinstance(error, HoneError):
        title, remedy = f"{error.reason.name}: {error.message}", error.remedy
    else:
        title, remedy = _describe_os_error(error), ""
    print_line(f"✗ {title}", color="red", err=True)
    if remedy:
        print_line(f"  {remedy}", err=True)


def print_hint(text: str) -> None:
    """Print a line that is not the result itself, on stderr."""
    print_line(text, dim=True, err=True)


def show_notices() -> None:
    """Print the notices of the client from now on."""
    logger.handlers = [NoticeHandler()]
    logger.setLevel(logging.INFO)
    logger.propagate = False


def print_next_step(text: str, command: str) -> None:
    """Print a possible next step, with the command for it, on stderr."""
    print_line(f"{text}:\n  {command}", err=True)


def print_answer(pieces: Iterable[str]) -> str:
    """Print pieces of a model's answer as they come, and return the answer.

    A pipe gets the exact text of the model, because it is data; a terminal gets it without control characters.
    """
    answer = ""
    try:
        for piece in pieces:
            answer += piece
            print(make_printable(piece) if is_terminal() else piece, end="", flush=True)
    finally:
        if answer:
            print(flush=True)
    return answer


def print_label(text: str) -> None:
    """Print the label before an answer on the same line."""
    print(make_printable(text), end="", flush=True)


def require_yes(question: str) -> None:
    """Ask a question on stderr that needs the answer y. Raises ClientError without a terminal, typer.Abort for no."""
    if not sys.stdin.isatty():
        raise ClientError(f"{question} This needs an answer, and the input is no terminal", "Add --yes.")
    print(make_printable(f"{question} [y/N] "), end="", flush=True, file=sys.stderr)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise typer.Abort


def make_console(**options: Any) -> "Console":
    """Return a rich console that prints text without markup, emoji codes and control characters."""
    from hone_cli.ui.console import PrintableConsole

    return PrintableConsole(**options)


def is_terminal() -> bool:
    """Return whether stdout is a terminal."""
    return sys.stdout.isatty()


def _describe_os_error(error: OSError) -> str:
    text = error.strerror or str(error) or type(error).__name__
    return f"{error.filename}: {text}" if error.filename else text
