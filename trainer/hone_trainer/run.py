"""One run or preparation, from the command line's options to the artifact.

What can be checked without torch comes first, since importing torch takes seconds. One process trains here, through
`pipeline`; for several, `distributed.launcher` starts workers, and each calls `run_worker`.
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

from hone_trainer.distributed.coordinator import Coordinator
from hone_trainer.distributed.coordinator_client import CoordinatorClient
from hone_trainer.distributed.launcher import launch_workers
from hone_trainer.distributed.ranks import Rank, find_rendezvous, make_local_ranks
from hone_trainer.distributed.results import raise_failure
from hone_trainer.inputs import manifest, model_files
from hone_trainer.inputs.manifest import JobInputs
from hone_trainer.progress.http_server import serve_progress
from hone_trainer.progress.state import ProgressState
from hone_trainer.progress.terminal import Terminal
from hone_trainer.runtime import environment
from hone_trainer.runtime.options import RunOptions
from hone_trainer.runtime.signals import StopSignal
from hone_trainer.storage import output_dir
from hone_trainer.tracking.requirements import refuse_missing_packages
from hone_trainer.tracking.trackers import Trackers, open_trackers


def run_job(options: RunOptions, stop: StopSignal, telemetry: ProgressState) -> ArtifactManifest:
    """Train the job in MANIFEST, or resume it. Raises HoneError; Interrupted when stopped."""
    _configure_logging(options)
    inputs = manifest.load_inputs(options)
    refuse_missing_packages(inputs.job.spec.tracking)
    trackers = open_trackers(inputs, options.output)
    if options.nodes > 1 or inputs.job.spec.resources.gpus > 1:
        return _run_distributed(inputs, options, stop, telemetry, trackers)
    if options.port:
        serve_progress(telemetry, options.port)
    with Terminal() as terminal, output_dir.lock_output_dir(options.output):
        done = output_dir.find_finished_artifact(options.output, inputs.job.spec)
        if done:
            _report_already_complete(done, inputs, options, terminal, telemetry, trackers)
        else:
            environment.set_up_environment(os.environ, options.output, inputs.job.spec.resources.gpus, options.verbose)
            require_gpus(os.environ)
            from hone_trainer.pipeline import run_pipeline

            done = run_pipeline(inputs, options, stop, telemetry, terminal)
        terminal.print_note(f"saved {done.kind} in {options.output}, digest {done.digest}")
    return done


def _run_distributed(
    inputs: JobInputs, options: RunOptions, stop: StopSignal, telemetry: ProgressState, trackers: Trackers
) -> ArtifactManifest:
    """Train in separate processes, one for each GPU. Raises as `run_job` does."""
    spec = inputs.job.spec
    here = find_rendezvous(options.nodes, os.environ)
    with output_dir.lock_output_dir(options.output) if here.node_rank == 0 else nullcontext():
        done = output_dir.find_finished_artifact(options.output, spec)
        if done:
            return _report_already_complete(done, inputs, options, Terminal(), telemetry, trackers)
        environment.set_up_environment(os.environ, options.output, spec.resources.gpus, options.verbose)
        environment.set_up_distributed(os.environ, options.nodes)
        require_gpus(os.environ)
        with Coordinator(here) if here.nodes > 1 and here.node_rank == 0 else nullcontext():
            coordinator = CoordinatorClient(here, Terminal().print_note) if here.nodes > 1 else None
            port = coordinator.join_rendezvous((options.output / MANIFEST).exists) if coordinator else here.port
            if port is None:  # node 0 has finished and won't start again
                return _run_distributed(inputs, options, stop, telemetry, trackers)
            result = launch_workers(
                make_local_ranks(replace(here, port=port), max(1, spec.resources.gpus)), options, stop, coordinator
            )
    telemetry.progress, telemetry.parameters = result.progress, result.parameters
    telemetry.read_trackers = lambda: result.tracking
    raise_failure(result)
    return result.manifest or read_manifest(options.output)


def _report_already_complete(
    done: ArtifactManifest,
    inputs: JobInputs,
    options: RunOptions,
    terminal: Terminal,
    telemetry: ProgressState,
    trackers: Trackers,
) -> ArtifactManifest:
    """Report that the artifact is already complete, and send what the experiment trackers lack.

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
    terminal.print_note(f"{options.output} already holds the complete artifact of this job")
    telemetry.parameters = Parameters.model_validate(done.parameters)
    telemetry.read_trackers = trackers.make_reports
    trackers.resend()
    return done


def _has_other_data(done: ArtifactManifest, inputs: JobInputs) -> bool:
    """Return whether the datasets' files have changed. Branches of the hub and URIs are not looked up; missing files
    don't count.
    """
    spec = inputs.job.spec
    if any(source.name or source.uri for source in spec.dataset_sources):
        return False
    from hone_trainer.data import dataset

    try:
        found = dataset.locate_datasets(spec, inputs, [])
    except HoneError:
        return False
    return dataset.compute_fingerprint(found, spec.dataset_weights) != done.dataset_fingerprint


def _has_other_model(inputs: JobInputs, output: Path) -> bool:
    """Return whether the base model's files differ from those remembered by the start that trained. See
    _has_other_data.
    """
    spec = inputs.job.spec
    before = output_dir.load_run_state(output, spec, has_checkpoint=False).model_digest
    if before is None or spec.model.claim is None:
        return False
    try:
        folder = inputs.find_claim_path(spec.model.claim, "spec.model.claim", MODEL_NOT_FOUND)
        return model_files.digest_files(folder) != before
    except (HoneError, OSError):
        return False


def run_worker(options: RunOptions, rank: Rank, stop: StopSignal, telemetry: ProgressState) -> ArtifactManifest:
    """Train as one of the processes that _run_distributed starts. Raises as `run_job` does."""
    _configure_logging(options)
    is_main = rank.rank == 0
    if options.port and is_main:
        serve_progress(telemetry, options.port)
    inputs = manifest.load_inputs(options)
    with Terminal(shown=is_main) as terminal:
        from hone_trainer.pipeline import run_pipeline

        done = run_pipeline(inputs, options, stop, telemetry, terminal, rank)
        terminal.print_note(f"saved {done.kind} in {options.output}, digest {done.digest}")
    return done


def prepare_job(options: RunOptions, telemetry: ProgressState) -> str:
    """Prepare the job in MANIFEST, print the dataset's report and a row, and return a summary. Raises HoneError."""
    _configure_logging(options)
    inputs = manifest.load_inputs(options)
    refuse_missing_packages(inputs.job.spec.tracking)
    if options.port:
        serve_progress(telemetry, options.port)
    with Terminal() as terminal, output_dir.lock_output_dir(options.output):
        environment.set_up_environment(os.environ, options.output, inputs.job.spec.resources.gpus, options.verbose)
        from hone_trainer.config import device
        from hone_trainer.preparation.prepare import prepare as prepare_all
        from hone_trainer.runtime.library_logging import silence_libraries

        if not options.verbose:
            silence_libraries()
        target = device.describe_target_device(inputs.job.spec.resources.gpus, options.gpu)
        done = prepare_all(inputs, options.output, terminal, target)
        telemetry.estimate, telemetry.parameters = done.file.plan.estimate, done.file.plan.parameters
        terminal.print_dataset_report(done.file.dataset)
        terminal.print_sample(done.segments)
        terminal.print_note(f"prepared in {options.output / PREPARED}")
    return done.file.dataset.summarize()


def _configure_logging(options: RunOptions) -> None:
    logging.basicConfig(level=logging.INFO if options.verbose else logging.WARNING, format="%(levelname)s %(message)s")
