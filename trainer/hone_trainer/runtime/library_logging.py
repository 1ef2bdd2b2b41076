"""Keep the messages of libraries out of the terminal."""

import warnings

from transformers.utils import logging


def silence_libraries() -> None:
    """Silence the libraries; without --verbose, only Hone's lines are shown."""
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    warnings.filterwarnings("ignore")
