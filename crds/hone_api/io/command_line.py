"""Options of the form NAME=VALUE on the command lines of Hone's programs, some of which the operator writes."""

import argparse


def parse_pair(text: str, form: str = "NAME=VALUE") -> tuple[str, str]:
    """Return the name and the value of an option. Raises ArgumentTypeError, which names `form`, for another text."""
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form {form}")
    return name, value
