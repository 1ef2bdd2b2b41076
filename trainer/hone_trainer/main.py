"""The command line of the trainer: `hone-trainer run MANIFEST --output DIR`."""

import argparse
import sys
import traceback
from pathlib import Path

from hone_api.layout import TRAINER_PORT
from hone_api.reasons import INTERNAL_ERROR, INTERRUPTED, INTERRUPTED_EXIT_CODE, HoneError
from hone_api.reports import TerminationMessage

from hone_trainer.options import Options
from hone_trainer.stop import Interrupted, Stop
from hone_trainer.telemetry import Telemetry


def main(argv: list[str] | None = None) -> int:
    """Run the trainer. Returns its exit code, as hone_api.reasons lists them."""
    options = parse(argv)
    stop = Stop()
    stop.listen()
    print("starting", file=sys.stderr, flush=True)
    code, message = outcome(options, stop)
    stop.ignore()
    if options.termination_log:
        try:
            options.termination_log.write_bytes(message.to_bytes())
        except OSError as error:
            print(f"warning: {options.termination_log} can't be written: {error.strerror}", file=sys.stderr)
    return code


def outcome(options: Options, stop: Stop) -> tuple[int, TerminationMessage]:
    """Run, and turn every way to end into an exit code and the termination message."""
    telemetry = Telemetry()
    try:
        try:
            from hone_trainer.run import run

            return 0, telemetry.succeeded(run(options, stop, telemetry))
        except Exception as error:
            from hone_trainer.errors import named

            failure = named(error)
            unnamed = failure.reason is INTERNAL_ERROR and failure is not error
            show(failure, error if options.verbose or unnamed else None)
            code = failure.reason.exit_code or 70
            return code, telemetry.failed(failure.reason.name, failure.sentence())
    except Interrupted:
        done = telemetry.progress
        where = f"at step {done.step} of {done.total_steps}" if done else "before training began"
        print(f"stopped {where}; the next start goes on from the newest checkpoint", file=sys.stderr)
        return INTERRUPTED_EXIT_CODE, telemetry.interrupted(INTERRUPTED.name, f"Stopped {where}. {INTERRUPTED.remedy}")


def show(failure: HoneError, cause: BaseException | None) -> None:
    """Print a failure as a person reads it; with its cause, the traceback above."""
    if cause:
        traceback.print_exception(cause)
    print(f"\nerror: {failure.reason.name}\n  {failure.message}\n  {failure.remedy}", file=sys.stderr)


def parse(argv: list[str] | None) -> Options:
    parser = argparse.ArgumentParser(prog="hone-trainer", description="Trains what a FineTuneJob asks for.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="train one FineTuneJob, or go on where an interrupted run stopped")
    run.add_argument("manifest", type=Path, help="YAML or JSON with one FineTuneJob, and ConfigMaps it uses")
    run.add_argument("--output", type=Path, required=True, help="folder for the artifact, checkpoints and logs")
    run.add_argument("--claim", type=_mapping, action="append", default=[], metavar="NAME=DIR", help="a claim's folder")
    run.add_argument(
        "--config-map", type=_mapping, action="append", default=[], metavar="NAME=DIR", help="a ConfigMap's folder"
    )
    run.add_argument(
        "--port", type=int, default=TRAINER_PORT, help="port for /progress, /metrics and /healthz; 0: none"
    )
    run.add_argument("--termination-log", type=Path, help="file for the last word, as JSON")
    run.add_argument("--verbose", action="store_true", help="also show tracebacks and what the libraries log")
    found = parser.parse_args(argv)
    return Options(
        manifest=found.manifest,
        output=found.output.absolute(),
        claims=dict(found.claim),
        config_maps=dict(found.config_map),
        port=found.port,
        termination_log=found.termination_log,
        verbose=found.verbose,
    )


def _mapping(text: str) -> tuple[str, Path]:
    name, equals, folder = text.partition("=")
    if not (name and equals and folder):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=DIR")
    return name, Path(folder).absolute()
