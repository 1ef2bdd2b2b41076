"""What the user reads: the one clear block of a failure, and hints."""

import sys
import traceback

import typer
from hone_api.reasons import HoneError


class Problem(Exception):
    """A failure outside the catalogue, of this machine or its way to the cluster: what was found, and what to do."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy


_verbose = False


def set_verbose(value: bool) -> bool:
    """Show tracebacks from now on, if `value`."""
    global _verbose
    _verbose = _verbose or value
    return value


def print_failure(error: HoneError | Problem | OSError) -> None:
    """The block for a failure, on stderr; with --verbose its traceback, too."""
    if _verbose:
        traceback.print_exception(error)
    if isinstance(error, HoneError):
        title, remedy = f"{error.reason.name}: {error.message}", error.remedy
    elif isinstance(error, Problem):
        title, remedy = error.message, error.remedy
    else:
        title, remedy = _os_error(error), ""
    typer.secho(f"✗ {title}", fg="red", err=True)
    if remedy:
        typer.echo(f"  {remedy}", err=True)


def hint(text: str) -> None:
    """A line that is not the answer itself, on stderr."""
    typer.secho(text, dim=True, err=True)


def next_step(text: str, command: str) -> None:
    """What the user may want to do next, with the command for it, on stderr."""
    typer.echo(f"{text}:\n  {command}", err=True)


def for_terminal(text: str) -> str:
    """A model's words without the control characters that could steer a terminal, where stdout is one."""
    if not is_terminal():
        return text
    return "".join(letter for letter in text if letter.isprintable() or letter in "\n\t")


def is_terminal() -> bool:
    """Whether a person looks at stdout."""
    return sys.stdout.isatty()


def _os_error(error: OSError) -> str:
    words = error.strerror or str(error) or type(error).__name__
    return f"{error.filename}: {words}" if error.filename else words
