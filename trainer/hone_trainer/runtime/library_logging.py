"""Leaving the terminal to Hone's own lines."""

import warnings

from transformers.utils import logging


def quiet() -> None:
    """What the libraries say comes with --verbose only."""
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    warnings.filterwarnings("ignore")
