"""`make accept-gpu`: runs on this machine's GPU what README and docs call unchecked, and writes a report to send back.

Exit codes: 0 no step failed, 1 a step failed, 2 wrong usage, or torch sees no GPU or one that does not work, 130
interrupted.
"""

import argparse
import contextlib
import datetime
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from acceptance import machine, report, rows
from acceptance.catalogue import STEPS, Step
from acceptance.context import ROOT, Context
from acceptance.redaction import redact_values
from acceptance.runner import run_step

NEEDS_NO_GPU = ("doctor", "image")
INPUTS = "inputs"
NEEDS_NO_INPUTS = (*NEEDS_NO_GPU, INPUTS, "pagedPlace", "levers")
UNENDED = "it had begun when this was written: it runs still, or this run was killed or the machine went down during it"
FAILED, UNUSABLE, INTERRUPTED = 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the steps and return the exit code. SIGTERM and SIGHUP stop the run as Ctrl-C does."""
    options = parse(arguments)
    with interrupted_by_signals():
        return run_chosen(options)


@contextlib.contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """Raise KeyboardInterrupt at the signals that end a session, a container or a service."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_chosen(options: argparse.Namespace) -> int:
    """Examine the machine, run the steps, and remove their files. Return the exit code."""
    print("Looking at the machine", flush=True)
    facts = redact_values(machine.collect_facts(os.environ), os.environ)
    seen = facts["torch"]
    chosen = [step for step in STEPS if not options.only or step.name in (*options.only, INPUTS)]
    options.output.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="work-", dir=options.output))
    unusable = seen["unusable"] if options.device == "gpu" else ""
    has_gpu = options.device == "gpu" and not unusable
    count, vendor = (len(seen["gpus"]), seen["vendor"]) if has_gpu else (0, "none")
    context = Context(options.device, vendor, count, work, options.vllm or shutil.which("vllm"))
    if options.device == "cpu":
        print(report.BANNER)
    try:
        return run_all(context, chosen, facts, options.output, unusable)
    finally:
        if not options.keep:
            shutil.rmtree(work, ignore_errors=True)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options. Exits with 2 on wrong usage."""
    parser = argparse.ArgumentParser(prog="acceptance", description=__doc__)
    parser.add_argument(
        "--device", choices=("gpu", "cpu"), default="gpu", help="cpu: try the run itself; checks nothing"
    )
    parser.add_argument("--output", type=Path, default=ROOT / "build/acceptance", help="folder of the report and logs")
    parser.add_argument(
        "--only", nargs="+", choices=[step.name for step in STEPS], help="run inputs and these steps alone"
    )
    parser.add_argument("--vllm", help="path of the program vllm (default: the one on PATH)")
    parser.add_argument("--keep", action="store_true", help="keep models and outputs")
    options = parser.parse_args(arguments)
    if options.vllm and not os.access(options.vllm, os.X_OK):
        parser.error(f"--vllm is {options.vllm}, which is no program")
    options.output = options.output.absolute()
    return options


def run_all(context: Context, chosen: Sequence[Step], facts: Mapping[str, Any], output: Path, unusable: str) -> int:
    """Run the chosen steps one after another, write the report after each, and return the exit code."""
    results = {step.name: _not_run("it was not reached") for step in STEPS}
    results |= {step.name: _not_run("it was left out by --only") for step in STEPS if step not in chosen}
    started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")

    def write(*, is_complete: bool = False) -> bool:
        steps = [
            {"name": step.name, "title": step.title, "limitSeconds": step.seconds} | results[step.name]
            for step in STEPS
        ]
        judged = rows.judge_rows(rows.read_rows(), results, context.device, context.vendor)
        document = report.make_document(context.device, facts, steps, judged, started=started, is_complete=is_complete)
        try:
            report.write_report(output, document)
        except OSError as error:  # such as a full disk: the next steps are tried all the same
            print(f"The report could not be written: {error}", file=sys.stderr)
            return False
        return True

    write()
    code = UNUSABLE if unusable else 0
    try:
        for step in chosen:
            print(f"{step.title} …", flush=True)
            results[step.name] = _not_run(UNENDED)
            write()  # so that a crash of the machine leaves the name of the step that it came in
            results[step.name] = _not_run("it was interrupted")
            results[step.name] = _run(step, context, output, _find_lack(step, results, unusable))
            write()
            found = results[step.name]
            print(
                f"  {found['status']}, {found['seconds']} s{': ' + found['reason'] if found['reason'] else ''}",
                flush=True,
            )
    except KeyboardInterrupt:
        is_written = write()
        print("Stopped.", file=sys.stderr)
        code = INTERRUPTED
    else:
        is_written = write(is_complete=True)
    if unusable:
        print(f"The GPUs can't be used: {unusable}. See also `hone doctor --local`.", file=sys.stderr)
    if is_written:
        print(f"Send back {output / 'report.json'} and {output / 'report.html'}.")
    else:
        print(f"The report in {output} is not that of the end. Free disk space, and run it again.", file=sys.stderr)
    has_failed = any(result["status"] == "failed" for result in results.values())
    return code or (0 if is_written and not has_failed else FAILED)


def _find_lack(step: Step, results: Mapping[str, Mapping[str, Any]], unusable: str) -> str:
    """Return why a step can't be run; empty if it can."""
    if unusable and step.name not in NEEDS_NO_GPU:
        return f"the GPUs can't be used: {unusable}"
    if step.name not in NEEDS_NO_INPUTS and results[INPUTS]["status"] != "passed":
        return f"it needs what the step {INPUTS} makes, and that step did not pass: {results[INPUTS]['reason']}"
    return ""


def _run(step: Step, context: Context, output: Path, lack: str) -> dict[str, Any]:
    """Return the result of a step, for any outcome in this process. `lack`: why it can't be run, or empty."""
    if lack:
        return _not_run(lack)
    try:
        return run_step(step, context, output / "logs", os.environ)
    except Exception as error:
        return _not_run(f"it could not be started: {type(error).__name__}: {error}") | {"status": "failed"}


def _not_run(reason: str) -> dict[str, Any]:
    return {"status": "not run", "reason": reason, "figures": {}, "seconds": 0, "log": "", "logTail": []}


if __name__ == "__main__":
    sys.exit(main())
