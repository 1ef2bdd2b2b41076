"""The command line of the trainer: `hone-trainer run MANIFEST --output DIR`, `prepare`, `plan` and `merge`.

Every way to end becomes an exit code of hone_api.reasons, a printed message and, for the operator, the termination
message. `run`, `memory.command` and `merging.command` do the work; they are imported late, so that a mistake in the
command line is reported at once.
"""

import argparse
from pathlib import Path
from traceback import format_exception

from hone_api.artifacts.trainer_reports import TerminationMessage
from hone_api.dtypes import DTYPES
from hone_api.exit_codes import INTERRUPTED_EXIT_CODE
from hone_api.gpus import Gpu
from hone_api.io.command_line import parse_pair
from hone_api.io.terminal import make_output_safe, print_line
from hone_api.layout import LOGS, TRAINER_PORT
from hone_api.reasons import INTERRUPTED, HoneError

from hone_trainer.progress.state import ProgressState
from hone_trainer.runtime.errors import UnclassifiedError, classify_error, translate_disk_full
from hone_trainer.runtime.options import MergeOptions, PlanOptions, RunOptions
from hone_trainer.runtime.signals import Interrupted, StopSignal


def main(argv: list[str] | None = None) -> int:
    """Run the trainer and return its exit code, one of those in hone_api.reasons."""
    options = parse_options(argv)
    make_output_safe(is_stdout_a_log=not isinstance(options, PlanOptions))
    stop = StopSignal()
    stop.install_handlers(
        lambda: write_termination_message(
            options, ProgressState().make_interrupted_message(INTERRUPTED.name, f"Stopped. {INTERRUPTED.remedy}")
        )
    )
    if isinstance(options, PlanOptions):
        return plan_and_report(options)
    print_line("starting")
    if isinstance(options, MergeOptions):
        return merge_and_report(options)
    code, message = run_and_report(options, stop)
    stop.ignore_signals()
    write_termination_message(options, message)
    return code


def write_termination_message(options: RunOptions | PlanOptions | MergeOptions, message: TerminationMessage) -> None:
    """Write the termination message to the file that the options name, if any."""
    if isinstance(options, RunOptions) and options.termination_log:
        try:
            options.termination_log.write_bytes(message.to_bytes())
        except OSError as error:
            print_line(f"warning: {options.termination_log} can't be written: {error.strerror}")


def run_and_report(options: RunOptions, stop: StopSignal) -> tuple[int, TerminationMessage]:
    """Run, and turn every way to end into an exit code and the termination message."""
    telemetry = ProgressState()
    try:
        try:
            with translate_disk_full(options.output):
                from hone_trainer.run import prepare_job, run_job

                if options.command == "prepare":
                    return 0, telemetry.make_prepared_message(prepare_job(options, telemetry))
                return 0, telemetry.make_succeeded_message(run_job(options, stop, telemetry))
        except Exception as error:
            code, failure = report_failure(error, options.verbose, options.output / LOGS)
            return code, telemetry.make_failed_message(failure.reason.name, failure.format_message())
    except Interrupted as interruption:
        done, why = telemetry.progress, str(interruption)
        where = f"at step {done.step} of {done.total_steps}" if done else "" if why else "before training began"
        stopped = f"{why}: stopped {where}".rstrip() if why else f"Stopped {where}"
        print_line(f"{stopped}; the next start resumes from the newest checkpoint")
        return INTERRUPTED_EXIT_CODE, telemetry.make_interrupted_message(
            INTERRUPTED.name, f"{stopped}. {INTERRUPTED.remedy}"
        )


def plan_and_report(options: PlanOptions) -> int:
    """Print the memory estimate of a job, and turn every way to end into an exit code."""
    try:
        try:
            from hone_trainer.memory.command import print_plan

            print_plan(options)
            return 0
        except Exception as error:
            return report_failure(error, options.verbose, None)[0]
    except Interrupted:
        return INTERRUPTED_EXIT_CODE


def merge_and_report(options: MergeOptions) -> int:
    """Merge, and turn every way to end into an exit code."""
    try:
        try:
            from hone_trainer.merging.command import merge_adapter_into_base

            merge_adapter_into_base(options)
            return 0
        except Exception as error:
            return report_failure(error, options.verbose, None)[0]
    except Interrupted:
        print_line(f"stopped; {options.out} was not written")
        return INTERRUPTED_EXIT_CODE


def report_failure(error: Exception, verbose: bool, logs: Path | None) -> tuple[int, HoneError]:
    """Print the failure that an exception means, and return its exit code and the failure. Tracebacks are kept in
    `logs`.
    """
    failure = classify_error(error)
    trace = failure.traceback if isinstance(failure, UnclassifiedError) else "".join(format_exception(error))
    if isinstance(failure, UnclassifiedError):
        file = logs and save_traceback(trace, logs)
        shown = f"with the traceback in {file}; --verbose shows it, too." if file else "with what --verbose shows."
        failure = HoneError(failure.reason, failure.message, remedy=f"If it comes again, report it {shown}")
    print_failure(failure, trace if verbose else "")
    return failure.reason.exit_code or 70, failure


def save_traceback(trace: str, logs: Path) -> Path | None:
    """Write the traceback of a failure without a name and return the file; print the traceback when that fails."""
    file = logs / "traceback.txt"
    try:
        logs.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)  # it may be a link to another user's file
        file.write_text(trace, encoding="utf-8", errors="backslashreplace")
    except OSError:
        print_line(trace.rstrip("\n"))
        return None
    return file


def print_failure(failure: HoneError, trace: str) -> None:
    """Print a failure for a person to read, below its traceback."""
    if trace:
        print_line(trace.rstrip("\n"))
    print_line(f"\nerror: {failure.reason.name}\n  {failure.message}\n  {failure.remedy}")


def parse_options(argv: list[str] | None) -> RunOptions | PlanOptions | MergeOptions:
    """Return the options of the command line. Exits with a message when they are wrong."""
    parser, prepare = _make_parsers()
    found = parser.parse_args(argv)
    if found.command == "merge":
        return MergeOptions(
            found.adapter, found.out.absolute(), found.base, found.dtype, found.verbose, found.trust_remote_code
        )
    if found.command == "plan":
        return PlanOptions(found.manifest, dict(found.claim), verbose=found.verbose)
    preparing = found.command == "prepare"
    if preparing and found.gpu_name and not found.gpu_memory:
        prepare.error(f"--gpu-name is {found.gpu_name}, and --gpu-memory is missing")
    return RunOptions(
        manifest=found.manifest,
        output=found.output.absolute(),
        command=found.command,
        claims=dict(found.claim),
        config_maps=dict(found.config_map),
        secrets=dict(found.secret),
        port=found.port,
        termination_log=found.termination_log,
        verbose=found.verbose,
        nodes=1 if preparing else found.nnodes,
        gpu=Gpu(found.gpu_name or "the GPU", found.gpu_memory) if preparing and found.gpu_memory else None,
    )


def _make_parsers() -> tuple[argparse.ArgumentParser, argparse.ArgumentParser]:
    """Return the parser of the command line, and that of its command `prepare`."""
    parser = argparse.ArgumentParser(prog="hone-trainer", description="Trains what a FineTuneJob asks for.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    prepare = commands.add_parser("prepare", help="download, check and tokenize for one FineTuneJob; needs no GPU")
    run = commands.add_parser("run", help="train one FineTuneJob, or resume an interrupted run")
    plan = commands.add_parser("plan", help="estimate the device memory of one FineTuneJob, from the model's config")
    for command in (prepare, run, plan):
        command.add_argument("manifest", type=Path, help="YAML or JSON with one FineTuneJob, and ConfigMaps it uses")
        command.add_argument(
            "--claim", type=_parse_folder, action="append", default=[], metavar="NAME=DIR", help="a claim's folder"
        )
        command.add_argument("--verbose", action="store_true", help="also show tracebacks and what the libraries log")
    for command in (prepare, run):
        command.add_argument("--output", type=Path, required=True, help="folder for all that the job leaves")
        command.add_argument(
            "--config-map",
            type=_parse_folder,
            action="append",
            default=[],
            metavar="NAME=DIR",
            help="a ConfigMap's folder",
        )
        command.add_argument(
            "--secret", type=_parse_folder, action="append", default=[], metavar="NAME=DIR", help="a Secret's folder"
        )
        command.add_argument("--termination-log", type=Path, help="file for the termination message, as JSON")
    prepare.add_argument("--gpu-name", metavar="TEXT", help="the GPU that will train, where it is not visible here")
    prepare.add_argument("--gpu-memory", type=_parse_byte_count, metavar="BYTES", help="its memory")
    for command, port in ((prepare, 0), (run, TRAINER_PORT)):
        command.add_argument(
            "--port",
            type=int,
            default=port,
            help=f"port for /progress, /metrics and /healthz; 0: none (default: {port})",
        )
    run.add_argument(
        "--nnodes",
        type=int,
        default=1,
        help="start the trainer on so many machines, each with NODE_RANK, MASTER_ADDR and MASTER_PORT set",
    )
    merge = commands.add_parser("merge", help="merge an adapter into its unquantized base model")
    merge.add_argument("adapter", type=Path, help="folder of an adapter, or the output folder of a job")
    merge.add_argument("out", type=Path, help="folder for the merged model, which must not exist")
    merge.add_argument(
        "--base", help="the base model, a folder or a name on the hub (default: the one that the adapter names)"
    )
    merge.add_argument("--dtype", choices=DTYPES, default="auto", help="type of the weights; auto: the base model's")
    merge.add_argument("--trust-remote-code", action="store_true", help="run the code that the base model brings")
    merge.add_argument("--verbose", action="store_true", help="also show tracebacks and what the libraries log")
    return parser, prepare


def _parse_byte_count(text: str) -> int:
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of bytes")
    return int(text)


def _parse_folder(text: str) -> tuple[str, Path]:
    name, folder = parse_pair(text, "NAME=DIR")
    return name, Path(folder).absolute()
