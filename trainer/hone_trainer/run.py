"""One run: what can be said without torch comes first, the pipeline after it."""

import logging
import os

from hone_api.artifact import ArtifactManifest
from hone_api.layout import base_model_name
from hone_api.reasons import DISK_FULL, INVALID_SPEC, HoneError
from hone_api.reports import ArtifactSummary, Parameters, TerminationMessage

from hone_trainer import environment, manifest, tree
from hone_trainer.options import Options
from hone_trainer.server import serve
from hone_trainer.stop import Stop
from hone_trainer.telemetry import Telemetry
from hone_trainer.terminal import Terminal


def run(options: Options, stop: Stop, telemetry: Telemetry) -> TerminationMessage:
    """Train what MANIFEST asks for, or go on with it. Returns a success's last word; raises HoneError, Interrupted."""
    logging.basicConfig(level=logging.INFO if options.verbose else logging.WARNING, format="%(levelname)s %(message)s")
    if options.port:
        serve(telemetry, options.port)
    inputs = manifest.load(options)
    _make_folder(options)
    done = tree.finished(options.output, inputs.job.spec)
    with Terminal() as terminal:
        if done:
            terminal.note(f"{options.output} already holds the complete artifact of this job")
            telemetry.parameters = Parameters.model_validate(done.parameters)
        else:
            environment.set_up(os.environ, options.output, inputs.job.spec.resources.gpus)
            from hone_trainer.pipeline import pipeline

            done = pipeline(inputs, options, stop, telemetry, terminal)
        terminal.note(f"saved {done.kind} in {options.output}, digest {done.digest}")
    return last_word(done)


def last_word(done: ArtifactManifest) -> TerminationMessage:
    """The termination message of a run whose artifact is complete."""
    base = done.base_model
    return TerminationMessage(
        outcome="Succeeded",
        reason="Succeeded",
        message=f"Saved {done.kind}, digest {done.digest}",
        metrics=done.metrics,
        artifact=ArtifactSummary(
            kind=done.kind,
            digest=done.digest,
            base_model=base_model_name(base.name, base.claim, base.path),
            base_revision=base.revision,
        ),
    )


def _make_folder(options: Options) -> None:
    try:
        options.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = DISK_FULL if error.errno == 28 else INVALID_SPEC
        raise HoneError(reason, f"--output is {options.output}, which can't be made: {error.strerror}") from None
