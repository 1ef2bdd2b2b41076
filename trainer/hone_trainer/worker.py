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

from hone_trainer.distributed.ranks import Place
from hone_trainer.distributed.results import Word
from hone_trainer.main import parse
from hone_trainer.progress.state import Telemetry
from hone_trainer.runtime.errors import UnnamedError, named
from hone_trainer.runtime.options import Options
from hone_trainer.runtime.signals import Interrupted, Stop


def main(word: Path, options: Options) -> None:
    """Train at the rank that the environment gives, write the result, and exit."""
    stop = Stop()
    stop.listen(lambda: say(word, Word(outcome="Interrupted")))
    threading.Thread(target=_follow_the_launcher, daemon=True).start()
    said = last_word(options, Place.of(os.environ), stop)
    stop.ignore()
    say(word, said)
    sys.stderr.flush()
    os._exit(0 if said.outcome == "Succeeded" else 1)


def say(file: Path, word: Word) -> None:
    """Write the result to a file, which is complete or absent at any time."""
    temporary = file.with_suffix(".tmp")
    temporary.write_text(word.model_dump_json(), encoding="utf-8")
    temporary.replace(file)


def last_word(options: Options, place: Place, stop: Stop) -> Word:
    """Train, and turn every way to end into a result."""
    telemetry = Telemetry()
    try:
        try:
            from hone_trainer.run import work

            said = Word(outcome="Succeeded", manifest=work(options, place, stop, telemetry))
        except Exception as error:
            said = _failed(error, options.verbose)
    except Interrupted:
        said = Word(outcome="Interrupted")
    return said.model_copy(update={"progress": telemetry.progress, "parameters": telemetry.parameters})


def _failed(error: Exception, verbose: bool) -> Word:
    failure = named(error)
    if verbose:
        print_line("".join(traceback.format_exception(error)).rstrip("\n"))
    return Word(
        outcome="Failed",
        reason=failure.reason.name,
        message=failure.message,
        remedy=failure.remedy,
        traceback=failure.traceback if isinstance(failure, UnnamedError) else "",
    )


def _follow_the_launcher() -> None:
    """Stop this process when its launcher is gone, since nothing else would stop it."""
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    options = parse(sys.argv[2:])
    make_output_safe(is_stdout_a_log=True)
    assert isinstance(options, Options)
    main(Path(sys.argv[1]), options)
