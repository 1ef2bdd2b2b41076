"""What a preparation does right now, in a line: how far a download is, or for whom it waits.

The sources report it from several threads; the HTTP server reads it, and the operator shows it in the job's status.
A process prepares one job, so there is one activity.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from hone_api.artifacts.trainer_reports import LONGEST_ACTIVITY
from hone_api.io.terminal import make_printable, print_line

_activity: str | None = None


def read_activity() -> str | None:
    """Return the newest line; None while nothing takes long."""
    return _activity


def report_activity(text: str) -> None:
    """Print what is done now, and keep it until the next line or the end of `clear_activity`."""
    print_line(text)
    set_activity(text)


def set_activity(text: str | None) -> None:
    """Keep what is done now, which is shown elsewhere in this terminal."""
    global _activity
    _activity = text and make_printable(text)[:LONGEST_ACTIVITY]


@contextmanager
def clear_activity() -> Iterator[None]:
    """At the end of the context nothing takes long any more."""
    try:
        yield
    finally:
        set_activity(None)
