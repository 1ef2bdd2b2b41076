"""The part of a run that needs torch: prepare, load, train, save. It reads from top to bottom.

`run` calls `run_pipeline`, once in each process that trains. `preparation.prepare` returns the tokenized rows and the
plan, `training.trainer` trains, and `storage.artifact` writes the result, with manifest.json as the last file.
"""

from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hone_api.artifacts.manifest import ArtifactManifest, list_folders, write_manifest
from hone_api.artifacts.trainer_reports import Parameters, Progress
from hone_api.finetunejobs.spec import FineTuneJob, LoraOptions
from hone_api.gpucheck import describe_closed_devices
from hone_api.layout import CHECKPOINTS, LOGS, METRICS_LOG
from hone_api.reasons import INTERNAL_ERROR, INVALID_SPEC, HoneError
from transformers import PreTrainedConfig, PrinterCallback

from hone_trainer.config import device, sft_config
from hone_trainer.config.auto_profile import ATTENTION, find_group_batches
from hone_trainer.config.trl_config import ALREADY_PREPARED, make_sft_config
from hone_trainer.distributed import fsdp
from hone_trainer.distributed.process_group import GroupBootstrap, ProcessGroup
from hone_trainer.distributed.ranks import Rank
from hone_trainer.inputs import hub
from hone_trainer.inputs.manifest import JobInputs
from hone_trainer.models import base_config, base_model, lora_targets, saved_config
from hone_trainer.preparation.prepare import Prepared, PreparedHandle, prepare
from hone_trainer.progress.state import ProgressState
from hone_trainer.progress.terminal import Terminal
from hone_trainer.reporting import report
from hone_trainer.reporting.model_card import make_model_card, read_license
from hone_trainer.runtime.library_logging import silence_libraries
from hone_trainer.runtime.options import RunOptions
from hone_trainer.runtime.signals import Interrupted, StopSignal
from hone_trainer.storage import artifact
from hone_trainer.storage.checkpoints import RunTotals
from hone_trainer.tracking.trackers import Trackers, describe_report, open_trackers
from hone_trainer.training import evaluation
from hone_trainer.training.callbacks import ReportCallback, StopCallback
from hone_trainer.training.metrics_log import MetricsLog
from hone_trainer.training.tensorboard import TensorBoardWriter
from hone_trainer.training.tracked_run import JournalCallback, make_record
from hone_trainer.training.trainer import HoneTrainer, make_final_metrics


def run_pipeline(
    inputs: JobInputs,
    options: RunOptions,
    stop: StopSignal,
    telemetry: ProgressState,
    terminal: Terminal,
    rank: Rank | None = None,
) -> ArtifactManifest:
    """Run everything from the base model to manifest.json, alone or as one of several processes.

    Raises HoneError; Interrupted once a checkpoint is saved.
    """
    if not options.verbose:
        silence_libraries()
    if rank:
        prepared, group = prepare_on_rank_zero(rank, inputs, options.output, terminal)
    else:
        prepared, group = prepare(inputs, options.output, terminal, device.detect_device()), ProcessGroup()
    with hub.work_offline():
        trackers = open_trackers(inputs, options.output)
        run = load_training_run(prepared, group, inputs, options.output, terminal, trackers)
        telemetry.parameters = count_parameters(run.trainer.model)
        terminal.print_note(telemetry.parameters.describe())

        telemetry.stage = "Training"
        with trackers:
            telemetry.read_trackers = trackers.make_reports
            totals = train_to_end(run, inputs.job, options.output, stop, telemetry, terminal)

            telemetry.stage = "Saving"
            return save_outputs(run, inputs.job, options.output, totals, telemetry.parameters, terminal)


def prepare_on_rank_zero(
    rank: Rank, inputs: JobInputs, root: Path, terminal: Terminal
) -> tuple[Prepared, ProcessGroup]:
    """Prepare in the first process; wait for it in the others and open what it prepared. Raises HoneError."""
    bootstrap = GroupBootstrap(rank)
    prepared = prepare(inputs, root, terminal, device.detect_device()) if rank.rank == 0 else None
    bootstrap.wait_for_rank_zero()
    group = bootstrap.create_group()
    found = group.broadcast(PreparedHandle.from_prepared(prepared) if prepared else None)
    return prepared or found.open_prepared(inputs.job.spec, root), group


@dataclass(frozen=True)
class TrainingRun:
    """A trainer with its model, for what was prepared. Of several processes, only the first has the log.

    `config` is the model's configuration before training.
    """

    prepared: Prepared
    group: ProcessGroup
    config: PreTrainedConfig
    metrics_log: MetricsLog | None
    trackers: Trackers
    trainer: HoneTrainer


def load_training_run(
    prepared: Prepared, group: ProcessGroup, inputs: JobInputs, root: Path, terminal: Terminal, trackers: Trackers
) -> TrainingRun:
    """Load the model and build the trainer. Raises HoneError."""
    spec, checkpoint = inputs.job.spec, prepared.checkpoint
    has_gpu = torch.cuda.is_available()
    terminal.print_warnings(sft_config.find_setting_warnings(spec, has_gpu))
    if spec.resources.gpus and not has_gpu and (closed := describe_closed_devices()):
        terminal.print_warnings([closed])
    plan = prepared.file.plan
    keywords = sft_config.make_sft_keywords(
        spec, root / CHECKPOINTS, use_cpu=not has_gpu, choices=plan.profile, sharding=plan.sharding
    )
    attention = next((choice.value for choice in plan.profile if choice.field == ATTENTION), None)
    network = base_model.load_model(prepared.base, spec, attention)
    config = deepcopy(network.config)
    step = checkpoint.totals.step if checkpoint else -1
    metrics_log = MetricsLog(root / METRICS_LOG, step) if group.is_main else None
    trainer = make_trainer(
        spec.lora,
        model=network,
        args=make_sft_config(keywords | ALREADY_PREPARED),
        train_dataset=prepared.train,
        eval_dataset=prepared.evaluation,
        processing_class=prepared.tokenizer,
        peft_config=lora_targets.make_lora_config(spec, prepared.base.commit, network),
        keep_checkpoints=spec.checkpoint.save_total_limit,
        before_sealing=partial(flush_logs, metrics_log, trackers),
        group=group,
        group_batches=find_group_batches(plan.profile),
    )
    return TrainingRun(prepared, group, config, metrics_log, trackers, trainer)


def flush_logs(metrics_log: MetricsLog | None, trackers: Trackers) -> None:
    """Force the logs to the disk before a checkpoint counts: a resume does not repeat the steps before it."""
    if metrics_log:
        metrics_log.flush()
    if trackers.journal:
        trackers.journal.sync()


def train_to_end(
    run: TrainingRun, job: FineTuneJob, root: Path, stop: StopSignal, telemetry: ProgressState, terminal: Terminal
) -> RunTotals:
    """Train to the end. Raises Interrupted when stopped, once a checkpoint is saved; HoneError NonFiniteLoss."""
    trainer, checkpoint = run.trainer, run.prepared.checkpoint
    step = checkpoint.totals.step if checkpoint else 0
    if checkpoint:
        terminal.print_note(f"resuming from the checkpoint at step {step} of {checkpoint.totals.total_steps}")
    trainer.remove_callback(PrinterCallback)
    if run.metrics_log:
        trainer.add_callback(
            TensorBoardWriter(root / LOGS, checkpoint.totals if checkpoint else None, run.metrics_log.last)
        )
        run.trackers.start(make_record(job, run.prepared, trainer))
    if run.trackers.journal:
        trainer.add_callback(JournalCallback(run.trackers.journal))
    trainer.add_callback(ReportCallback(trainer, telemetry, run.metrics_log, terminal))
    trainer.add_callback(StopCallback(stop, run.group))
    try:
        with stop.defer_signals():
            totals = trainer.fit(
                checkpoint, evaluation.make_baseline_measurement(trainer, run.prepared, root, stop, terminal)
            )
            stopped = run.group.is_set_on_any_rank(stop.is_requested)
    finally:
        if run.metrics_log:
            run.metrics_log.close()
    if stopped or stop.is_requested:
        raise Interrupted
    refuse_incomplete(totals)
    run.trackers.end("finished")
    telemetry.progress = telemetry.progress or Progress(step=step, total_steps=step, percent=100)
    return totals


def refuse_incomplete(totals: RunTotals) -> None:
    """Raise HoneError InternalError when training ended before its last step without a signal to stop."""
    if not totals.is_finished:
        raise HoneError(
            INTERNAL_ERROR,
            f"Training ended after step {totals.step} of {totals.total_steps}, without a request to stop",
            remedy="No artifact was saved. Check how many batches the rows give with spec.training, and start again.",
        )


def save_outputs(
    run: TrainingRun, job: FineTuneJob, root: Path, totals: RunTotals, parameters: Parameters, terminal: Terminal
) -> ArtifactManifest:
    """Save what the spec requests, manifest.json last. Of several processes, only the first writes."""
    first = evaluation.read_baseline(root, terminal)
    last = evaluation.measure_trained_model(run.trainer, run.prepared, totals, terminal)
    network = run.trainer.accelerator.unwrap_model(run.trainer.model)
    weights = fsdp.gather_full_weights(network)
    if not run.group.is_main:
        manifest: ArtifactManifest = run.group.broadcast(None)
        run.group.barrier()
        return manifest
    kind, metrics = (
        artifact.get_artifact_kind(job.spec),
        make_final_metrics(totals) | evaluation.make_comparison_metrics(first, last),
    )
    if gained := evaluation.describe_comparison(metrics):
        terminal.print_note(gained)
    terminal.print_metrics(metrics)
    terminal.print_note("saving " + " and ".join(str(root / folder) for folder in list_folders(kind)))
    saved_config.restore_config(network.config, run.config)
    base, fingerprint = run.prepared.base.reference, run.prepared.file.dataset_fingerprint
    card = partial(
        make_model_card, job, base, read_license(base_model.find_model_folder(run.prepared.base)), metrics, fingerprint
    )
    load_base = partial(base_model.load_unquantized, run.prepared.base, job.spec.model)
    artifact.save_models(
        root,
        network,
        run.prepared.tokenizer,
        kind,
        card,
        load_base,
        weights,
        trust_remote_code=job.spec.model.trust_remote_code,
        warn=lambda text: terminal.print_warnings([text]),
    )
    config = base_config.read_base_config(base_model.load_config(run.prepared.base, job.spec.model), network)
    manifest = artifact.make_manifest(root, job, base, config, fingerprint, metrics, parameters.model_dump())
    settings = report.list_settings(job.spec, run.trainer.args, run.prepared.file.plan.profile)
    run.trackers.wait()
    tracking = run.trackers.make_reports() or []
    for line in map(describe_report, tracking):
        terminal.print_note(line)
    data = report.collect_report(root, manifest, run.prepared, settings, first, last, tracking)
    terminal.print_warnings(report.write_report(root, data))
    write_manifest(root, manifest)
    run.group.broadcast(manifest)  # a network disk may not show the file on every node yet
    run.group.barrier()
    return manifest


def make_trainer(lora: LoraOptions | None, **keywords: Any) -> HoneTrainer:
    """Return the trainer. Raises HoneError InvalidSpec when the adapter doesn't fit the model."""
    try:
        return HoneTrainer(**keywords)
    except ValueError as error:
        text = " ".join(str(error).split())
        if lora and any(words in text.lower() for words in ("target module", "target_modules")):
            raise HoneError(
                INVALID_SPEC,
                f"spec.lora.targetModules is {lora.target_modules}: {text}",
                remedy="Name linear layers that the model has, or set it to all-linear.",
            ) from error
        raise HoneError(INVALID_SPEC, f"TRL refuses the combination of model, dataset and arguments: {text}") from error


def count_parameters(network: Any) -> Parameters:
    """Count the trainable and all parameters; in 4 bits, a byte of bitsandbytes holds two."""
    sizes = [
        (parameter.numel() * (2 if type(parameter).__name__ == "Params4bit" else 1), parameter.requires_grad)
        for parameter in network.parameters()
    ]
    return Parameters(trainable=sum(size for size, trained in sizes if trained), total=sum(size for size, _ in sizes))
