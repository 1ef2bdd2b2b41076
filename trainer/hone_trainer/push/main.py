"""Push an artifact to its destinations. Does not import torch.

`python -m hone_trainer.push.main DIR --manifest FILE` runs in a pod of its own, the only one with the credentials of
the destinations; `hone push DIR ADDRESS…` runs it on a laptop. In: the artifact and the destinations. Out: what came
of each of them, as lines and in the termination message, which the operator reads. A destination that fails does not
keep the others from being pushed to. A start after an interruption sends what is missing.
"""

import argparse
import sys
from pathlib import Path

from hone_api.artifacts.trainer_reports import PushResult, TerminationMessage
from hone_api.exit_codes import INTERRUPTED_EXIT_CODE
from hone_api.io.command_line import parse_pair
from hone_api.io.terminal import make_output_safe, print_line
from hone_api.reasons import INTERRUPTED, HoneError

from hone_trainer.inputs import manifest
from hone_trainer.push.artifact import LocalArtifact, load_artifact
from hone_trainer.push.destinations import Destination, make_destination, parse_address
from hone_trainer.runtime.errors import UnclassifiedError, classify_error
from hone_trainer.runtime.options import RunOptions
from hone_trainer.runtime.signals import Interrupted, StopSignal

# So many characters of a failure are in the result of a destination: all of them must fit into a termination message.
MESSAGE_CHARACTERS = 300


def main(argv: list[str] | None = None) -> int:
    """Push, and return the exit code: that of a failure which a retry may fix, if there is one."""
    arguments = _parse_arguments(argv)
    make_output_safe(is_stdout_a_log=True)
    stop = StopSignal()
    stop.install_handlers(lambda: _write(arguments.termination_log, _make_interrupted()))
    try:
        message, code = _push(arguments)
    except Interrupted:
        print_line("stopped: the next push sends what is missing")
        message, code = _make_interrupted(), INTERRUPTED_EXIT_CODE
    stop.ignore_signals()
    _write(arguments.termination_log, message)
    return code


def _push(arguments: argparse.Namespace) -> tuple[TerminationMessage, int]:
    """Push to all destinations, and turn every failure into a message and an exit code."""
    failures: list[HoneError] = []
    results: list[PushResult] = []
    try:
        destinations = _make_destinations(arguments)
        artifact = load_artifact(arguments.folder, arguments.digest)
    except Exception as error:
        failures.append(_report(error))
    else:
        for index, destination in enumerate(destinations):
            results.append(_push_to(destination, index, artifact, failures))
    if not failures:
        text = f"Pushed {artifact.manifest.digest} to {', '.join(each.address for each in destinations)}."
        return TerminationMessage(outcome="Succeeded", reason="Pushed", message=text, pushed=results), 0
    worst = max(failures, key=lambda failure: failure.reason.exit_code or 0)
    sentences = " ".join(failure.format_message() for failure in failures)
    message = TerminationMessage(outcome="Failed", reason=worst.reason.name, message=sentences, pushed=results)
    return message, worst.reason.exit_code or 1


def _make_destinations(arguments: argparse.Namespace) -> list[Destination]:
    if arguments.manifest is None:
        return [parse_address(each, is_private=not arguments.public) for each in arguments.address]
    config_maps, secrets = dict(arguments.config_map), dict(arguments.secret)
    inputs = manifest.load_inputs(
        RunOptions(arguments.manifest, arguments.folder, config_maps=config_maps, secrets=secrets)
    )
    return [make_destination(each, index, inputs) for index, each in enumerate(inputs.job.spec.output.push)]


def _push_to(destination: Destination, index: int, artifact: LocalArtifact, failures: list[HoneError]) -> PushResult:
    """Push to one destination; add its failure to `failures`."""
    print_line(f"pushing {artifact.manifest.digest} to {destination.address}")
    try:
        revision = destination.push(artifact)
    except Exception as error:
        failure = _report(error)
        failures.append(failure)
        message = failure.format_message()
        if len(message) > MESSAGE_CHARACTERS:
            message = f"{message[:MESSAGE_CHARACTERS].rstrip()} …"
        return PushResult(index=index, reason=failure.reason.name, message=message)
    print_line(f"pushed {artifact.manifest.digest} to {destination.address}" + (f" at {revision}" if revision else ""))
    return PushResult(index=index, revision=revision)


def _report(error: Exception) -> HoneError:
    """Print the failure that an exception means, and return it."""
    failure = classify_error(error)
    if isinstance(failure, UnclassifiedError):
        print_line(failure.traceback.rstrip("\n"))
    print_line(f"\nerror: {failure.reason.name}\n  {failure.message}\n  {failure.remedy}")
    return failure


def _make_interrupted() -> TerminationMessage:
    text = "Stopped. The next push sends what is missing."
    return TerminationMessage(outcome="Interrupted", reason=INTERRUPTED.name, message=text)


def _write(file: Path | None, message: TerminationMessage) -> None:
    """Write the termination message, if a file for it is given."""
    if file:
        try:
            file.write_bytes(message.to_bytes())
        except OSError as error:
            print_line(f"warning: {file} can't be written: {error.strerror}")


def _parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m hone_trainer.push.main", description="Copy an artifact to places outside the cluster."
    )
    parser.add_argument("folder", type=_parse_path, help="the output folder of a job")
    parser.add_argument(
        "address", nargs="*", help="s3://BUCKET/FOLDER, hf://OWNER/NAME or oci://REGISTRY/REPOSITORY:TAG"
    )
    parser.add_argument("--public", action="store_true", help="create repositories on the hub that everybody may read")
    parser.add_argument("--manifest", type=Path, help="YAML or JSON with the FineTuneJob whose destinations are meant")
    for option, what in (("--config-map", "a ConfigMap's folder"), ("--secret", "a Secret's folder")):
        parser.add_argument(option, type=_parse_folder, action="append", default=[], metavar="NAME=DIR", help=what)
    parser.add_argument("--digest", help="the digest that the artifact must have")
    parser.add_argument("--termination-log", type=Path, help="file for the termination message, as JSON")
    found = parser.parse_args(argv)
    if bool(found.address) == bool(found.manifest):
        parser.error("give either addresses or --manifest")
    return found


def _parse_path(text: str) -> Path:
    return Path(text).absolute()


def _parse_folder(text: str) -> tuple[str, Path]:
    name, folder = parse_pair(text, "NAME=DIR")
    return name, _parse_path(folder)


if __name__ == "__main__":
    sys.exit(main())
