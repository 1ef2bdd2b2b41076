"""Notices to the user that are no results, as records of the logger `hone`: the command prints them, a program may.

A record of level WARNING needs an action, and Python prints it on standard error where logging is not set up.
"""

import logging

from hone_api.io.terminal import make_printable

logger = logging.getLogger("hone")


def report_hint(text: str) -> None:
    """Report what happens, or what the user may want to know."""
    logger.info("%s", make_printable(text))


def report_next_step(text: str, command: str) -> None:
    """Report what the user has to do, with the command for it."""
    logger.warning("%s:\n  %s", make_printable(text), make_printable(command))
