"""One of several training processes: `python -m hone_trainer.worker RESULT ARGUMENTS…`, started by the launcher.

It writes its result to the file RESULT. It exits without shutting torch down, which sometimes aborts after processes
have communicated, or waits for processes that are gone.
"""

import os
import signal
import sys
import threading
import traceback
from pathlib import Path

from hone_api.io.terminal import make_output_safe, print_line

from hone_trainer.distributed.ranks import Rank
from hone_trainer.distributed.results import WorkerResult
from hone_trainer.main import parse_options
from hone_trainer.progress.state import ProgressState
from hone_trainer.runtime.errors import UnclassifiedError, classify_error
from hone_trainer.runtime.options import RunOptions
from hone_trainer.runtime.signals import Interrupted, StopSignal


def main(file: Path, options: RunOptions) -> None:
    """Train at the rank that the environment gives, write the result, and exit."""
    stop = StopSignal()
    stop.install_handlers(lambda: write_result(file, WorkerResult(outcome="Interrupted")))
    threading.Thread(target=_stop_with_the_launcher, daemon=True).start()
    result = run_and_report(options, Rank.from_environ(os.environ), stop)
    stop.ignore_signals()
    write_result(file, result)
    sys.stderr.flush()
    os._exit(0 if result.outcome == "Succeeded" else 1)


def write_result(file: Path, result: WorkerResult) -> None:
    """Write the result to a file, which is complete or absent at any time."""
    temporary = file.with_suffix(".tmp")
    temporary.write_text(result.model_dump_json(), encoding="utf-8")
    temporary.replace(file)


def run_and_report(options: RunOptions, rank: Rank, stop: StopSignal) -> WorkerResult:
    """Train, and turn every way to end into a result."""
    telemetry = ProgressState()
    try:
        try:
            from hone_trainer.run import run_worker

            result = WorkerResult(outcome="Succeeded", manifest=run_worker(options, rank, stop, telemetry))
        except Exception as error:
            result = _make_failed_result(error, options.verbose)
    except Interrupted:
        result = WorkerResult(outcome="Interrupted")
    reported = {
        "progress": telemetry.progress,
        "parameters": telemetry.parameters,
        "tracking": telemetry.read_trackers(),
    }
    return result.model_copy(update=reported)


def _make_failed_result(error: Exception, verbose: bool) -> WorkerResult:
    failure = classify_error(error)
    if verbose:
        print_line("".join(traceback.format_exception(error)).rstrip("\n"))
    return WorkerResult(
        outcome="Failed",
        reason=failure.reason.name,
        message=failure.message,
        remedy=failure.remedy,
        traceback=failure.traceback if isinstance(failure, UnclassifiedError) else "",
    )


def _stop_with_the_launcher() -> None:
    """Stop this process when its launcher is gone, since nothing else would stop it."""
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    options = parse_options(sys.argv[2:])
    make_output_safe(is_stdout_a_log=True)
    assert isinstance(options, RunOptions)
    main(Path(sys.argv[1]), options)
