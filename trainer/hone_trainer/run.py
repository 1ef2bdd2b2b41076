"""One run or preparation: what can be said without torch comes first, the pipeline after it."""

import logging
import os

from hone_api.artifact import ArtifactManifest
from hone_api.layout import PREPARED
from hone_api.reports import Parameters

from hone_trainer import environment, manifest, tree
from hone_trainer.options import Options
from hone_trainer.server import serve
from hone_trainer.stop import Stop
from hone_trainer.telemetry import Telemetry
from hone_trainer.terminal import Terminal


def run(options: Options, stop: Stop, telemetry: Telemetry) -> ArtifactManifest:
    """Train what MANIFEST asks for, or go on with it. Raises HoneError; Interrupted when told to stop."""
    _log(options)
    if options.port:
        serve(telemetry, options.port)
    inputs = manifest.load(options)
    with Terminal() as terminal, tree.owned(options.output):
        done = tree.finished(options.output, inputs.job.spec)
        if done:
            terminal.note(f"{options.output} already holds the complete artifact of this job")
            telemetry.parameters = Parameters.model_validate(done.parameters)
        else:
            environment.set_up(os.environ, options.output, inputs.job.spec.resources.gpus)
            from hone_trainer.pipeline import pipeline

            done = pipeline(inputs, options, stop, telemetry, terminal)
        terminal.note(f"saved {done.kind} in {options.output}, digest {done.digest}")
    return done


def prepare(options: Options) -> str:
    """Prepare what MANIFEST asks for, show the dataset's report and a row, and sum it up. Raises HoneError."""
    _log(options)
    inputs = manifest.load(options)
    with Terminal() as terminal, tree.owned(options.output):
        environment.set_up(os.environ, options.output, inputs.job.spec.resources.gpus)
        from hone_trainer.pipeline import quiet
        from hone_trainer.prepare import prepare as prepare_all

        if not options.verbose:
            quiet()
        done = prepare_all(inputs, options.output, terminal)
        terminal.report(done.file.dataset)
        terminal.sample(done.segments)
        terminal.note(f"prepared in {options.output / PREPARED}")
    return done.file.dataset.summary()


def _log(options: Options) -> None:
    logging.basicConfig(level=logging.INFO if options.verbose else logging.WARNING, format="%(levelname)s %(message)s")
