"""One run or preparation, from the command line's options to the artifact.

What can be checked without torch comes first, since importing torch takes seconds. One process trains here, through
`pipeline`; for several, `distributed.launcher` starts workers, and each calls `work`.
"""

import logging
import os
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from hone_api.artifacts.manifest import ArtifactManifest, read_manifest
from hone_api.artifacts.trainer_reports import Parameters
from hone_api.layout import MANIFEST, PREPARED
from hone_api.reasons import DATASET_INVALID, MODEL_INVALID, MODEL_NOT_FOUND, HoneError
from hone_api.requiredgpus import require_gpus

from hone_trainer.distributed.coordinator import Gate
from hone_trainer.distributed.coordinator_client import Member
from hone_trainer.distributed.launcher import launch
from hone_trainer.distributed.ranks import Place, places, rendezvous
from hone_trainer.distributed.results import raise_failure
from hone_trainer.inputs import manifest, model_files
from hone_trainer.inputs.manifest import Inputs
from hone_trainer.progress.http_server import serve
from hone_trainer.progress.state import Telemetry
from hone_trainer.progress.terminal import Terminal
from hone_trainer.runtime import environment
from hone_trainer.runtime.options import Options
from hone_trainer.runtime.signals import Stop
from hone_trainer.storage import output_dir


def run(options: Options, stop: Stop, telemetry: Telemetry) -> ArtifactManifest:
    """Train the job in MANIFEST, or resume it. Raises HoneError; Interrupted when stopped."""
    _log(options)
    inputs = manifest.load(options)
    if options.nodes > 1 or inputs.job.spec.resources.gpus > 1:
        return _together(inputs, options, stop, telemetry)
    if options.port:
        serve(telemetry, options.port)
    with Terminal() as terminal, output_dir.owned(options.output):
        done = output_dir.finished(options.output, inputs.job.spec)
        if done:
            _known(done, inputs, options, terminal, telemetry)
        else:
            environment.set_up(os.environ, options.output, inputs.job.spec.resources.gpus, options.verbose)
            require_gpus(os.environ)
            from hone_trainer.pipeline import pipeline

            done = pipeline(inputs, options, stop, telemetry, terminal)
        terminal.note(f"saved {done.kind} in {options.output}, digest {done.digest}")
    return done


def _together(inputs: Inputs, options: Options, stop: Stop, telemetry: Telemetry) -> ArtifactManifest:
    """Train in separate processes, one for each GPU. Raises as `run` does."""
    spec = inputs.job.spec
    here = rendezvous(options.nodes, os.environ)
    with output_dir.owned(options.output) if here.node == 0 else nullcontext():
        done = output_dir.finished(options.output, spec)
        if done:
            return _known(done, inputs, options, Terminal(), telemetry)
        environment.set_up(os.environ, options.output, spec.resources.gpus, options.verbose)
        environment.for_several(os.environ, options.nodes)
        require_gpus(os.environ)
        with Gate(here) if here.nodes > 1 and here.node == 0 else nullcontext():
            member = Member(here, Terminal().note) if here.nodes > 1 else None
            port = member.join((options.output / MANIFEST).exists) if member else here.port
            if port is None:  # node 0 has finished and won't start again
                return _together(inputs, options, stop, telemetry)
            word = launch(places(replace(here, port=port), max(1, spec.resources.gpus)), options, stop, member)
    telemetry.progress, telemetry.parameters = word.progress, word.parameters
    raise_failure(word)
    return word.manifest or read_manifest(options.output)


def _known(
    done: ArtifactManifest, inputs: Inputs, options: Options, terminal: Terminal, telemetry: Telemetry
) -> ArtifactManifest:
    """Report that the artifact is already complete.

    Raises HoneError DatasetInvalid or ModelInvalid when files of the dataset or of the base model have changed since.
    """
    for reason, what, has_changed in (
        (DATASET_INVALID, "the dataset", _has_other_data(done, inputs)),
        (MODEL_INVALID, "the base model", _has_other_model(inputs, options.output)),
    ):
        if has_changed:
            raise HoneError(
                reason,
                f"{options.output} holds the complete artifact of this spec, and {what} has changed since",
                remedy=f"Give the new one another name or --output, or empty {options.output} to train again.",
            )
    terminal.note(f"{options.output} already holds the complete artifact of this job")
    telemetry.parameters = Parameters.model_validate(done.parameters)
    return done


def _has_other_data(done: ArtifactManifest, inputs: Inputs) -> bool:
    """Return whether the dataset's files have changed. Branches of the hub are not looked up; missing files don't
    count.
    """
    source = inputs.job.spec.dataset
    if source.name:
        return False
    from hone_trainer.data import dataset

    try:
        return dataset.find(source, inputs, None).fingerprint != done.dataset_fingerprint
    except HoneError:
        return False


def _has_other_model(inputs: Inputs, output: Path) -> bool:
    """Return whether the base model's files differ from those remembered by the start that trained. See
    _has_other_data.
    """
    spec = inputs.job.spec
    before = output_dir.earlier(output, spec, has_checkpoint=False).model_digest
    if before is None or spec.model.claim is None:
        return False
    try:
        folder = inputs.claim_path(spec.model.claim, "spec.model.claim", MODEL_NOT_FOUND)
        return model_files.digest_files(folder) != before
    except (HoneError, OSError):
        return False


def work(options: Options, place: Place, stop: Stop, telemetry: Telemetry) -> ArtifactManifest:
    """Train as one of the processes that _together starts. Raises as `run` does."""
    _log(options)
    leads = place.rank == 0
    if options.port and leads:
        serve(telemetry, options.port)
    inputs = manifest.load(options)
    with Terminal(shown=leads) as terminal:
        from hone_trainer.pipeline import pipeline

        done = pipeline(inputs, options, stop, telemetry, terminal, place)
        terminal.note(f"saved {done.kind} in {options.output}, digest {done.digest}")
    return done


def prepare(options: Options, telemetry: Telemetry) -> str:
    """Prepare the job in MANIFEST, print the dataset's report and a row, and return a summary. Raises HoneError."""
    _log(options)
    inputs = manifest.load(options)
    with Terminal() as terminal, output_dir.owned(options.output):
        environment.set_up(os.environ, options.output, inputs.job.spec.resources.gpus, options.verbose)
        from hone_trainer.config import device
        from hone_trainer.preparation.prepare import prepare as prepare_all
        from hone_trainer.runtime.library_logging import quiet

        if not options.verbose:
            quiet()
        target = device.elsewhere(inputs.job.spec.resources.gpus, options.gpu)
        done = prepare_all(inputs, options.output, terminal, target)
        telemetry.estimate, telemetry.parameters = done.file.plan.estimate, done.file.plan.parameters
        terminal.report(done.file.dataset)
        terminal.sample(done.segments)
        terminal.note(f"prepared in {options.output / PREPARED}")
    return done.file.dataset.summary()


def _log(options: Options) -> None:
    logging.basicConfig(level=logging.INFO if options.verbose else logging.WARNING, format="%(levelname)s %(message)s")
