"""Run a program of an init container that downloads what a service needs. Does not import torch.

In: the download, of model_download.py or models/uri_download.py. Out: the exit code, and as the last line on stderr the
reason of a failure, in the form in which the operator reads it.
"""

from collections.abc import Callable

from hone_api.containers import DOWNLOAD_PROGRAM, format_failure_line
from hone_api.exit_codes import INTERRUPTED_EXIT_CODE
from hone_api.io.terminal import make_output_safe, print_line

from hone_trainer.runtime.errors import UnclassifiedError, classify_error
from hone_trainer.runtime.signals import Interrupted, StopSignal


def run_download(download: Callable[[], None]) -> int:
    """Download, and return the exit code. Signals interrupt it, and failures are printed."""
    make_output_safe(is_stdout_a_log=True)
    StopSignal().install_handlers()
    try:
        download()
    except Interrupted:
        return INTERRUPTED_EXIT_CODE
    except Exception as error:
        failure = classify_error(error)
        if isinstance(failure, UnclassifiedError):
            print_line(failure.traceback.rstrip("\n"))
        print_line(format_failure_line(DOWNLOAD_PROGRAM, failure))
        return failure.reason.exit_code or 1
    return 0
