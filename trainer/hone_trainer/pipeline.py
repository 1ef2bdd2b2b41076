"""The part of a run that needs torch: prepare, load, train, save. It reads from top to bottom.

`run` calls `pipeline`, once in each process that trains. `preparation.prepare` returns the tokenized rows and the plan,
`training.trainer` trains, and `storage.artifact` writes the result, with manifest.json as the last file.
"""

from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hone_api.artifacts.manifest import ArtifactManifest, folders_of, write_manifest
from hone_api.artifacts.trainer_reports import Parameters, Progress
from hone_api.finetunejobs.spec import FineTuneJob, LoraOptions
from hone_api.gpucheck import describe_closed_devices
from hone_api.layout import CHECKPOINTS, LOGS, METRICS_LOG
from hone_api.reasons import INTERNAL_ERROR, INVALID_SPEC, HoneError
from transformers import PreTrainedConfig, PrinterCallback

from hone_trainer.config import device, sft_config
from hone_trainer.config.auto_profile import ATTENTION
from hone_trainer.config.trl_config import ALREADY_PREPARED, make_sft_config
from hone_trainer.distributed import fsdp
from hone_trainer.distributed.process_group import Group, Meeting
from hone_trainer.distributed.ranks import Place
from hone_trainer.inputs import hub
from hone_trainer.inputs.manifest import Inputs
from hone_trainer.models import base_config, base_model, lora_targets, saved_config
from hone_trainer.preparation.prepare import Found, Prepared, prepare
from hone_trainer.progress.state import Telemetry
from hone_trainer.progress.terminal import Terminal
from hone_trainer.reporting import report
from hone_trainer.reporting.model_card import license_of, model_card
from hone_trainer.runtime.library_logging import quiet
from hone_trainer.runtime.options import Options
from hone_trainer.runtime.signals import Interrupted, Stop
from hone_trainer.storage import artifact
from hone_trainer.storage.checkpoints import Account
from hone_trainer.training import evaluation
from hone_trainer.training.callbacks import ReportCallback, StopCallback
from hone_trainer.training.metrics_log import MetricsLog
from hone_trainer.training.tensorboard import Curves
from hone_trainer.training.trainer import HoneTrainer, final_metrics


def pipeline(
    inputs: Inputs, options: Options, stop: Stop, telemetry: Telemetry, terminal: Terminal, place: Place | None = None
) -> ArtifactManifest:
    """Run everything from the base model to manifest.json, alone or as one of several processes.

    Raises HoneError; Interrupted once a checkpoint is saved.
    """
    if not options.verbose:
        quiet()
    if place:
        prepared, group = meet(place, inputs, options.output, terminal)
    else:
        prepared, group = prepare(inputs, options.output, terminal, device.here()), Group()
    with hub.offline():
        run = load(prepared, group, inputs, options.output, terminal)
        telemetry.parameters = count(run.trainer.model)
        terminal.note(telemetry.parameters.describe())

        telemetry.stage = "Training"
        account = train(run, options.output, stop, telemetry, terminal)

        telemetry.stage = "Saving"
        return keep(run, inputs.job, options.output, account, telemetry.parameters, terminal)


def meet(place: Place, inputs: Inputs, root: Path, terminal: Terminal) -> tuple[Prepared, Group]:
    """Prepare in the first process; wait for it in the others and open what it prepared. Raises HoneError."""
    meeting = Meeting(place)
    prepared = prepare(inputs, root, terminal, device.here()) if place.rank == 0 else None
    meeting.wait_for_the_first()
    group = meeting.join()
    found = group.from_first(Found.of(prepared) if prepared else None)
    return prepared or found.open(inputs.job.spec, root), group


@dataclass(frozen=True)
class Run:
    """A trainer with its model, for what was prepared. Of several processes, only the first has the log.

    `config` is the model's configuration before training.
    """

    prepared: Prepared
    group: Group
    config: PreTrainedConfig
    metrics_log: MetricsLog | None
    trainer: HoneTrainer


def load(prepared: Prepared, group: Group, inputs: Inputs, root: Path, terminal: Terminal) -> Run:
    """Load the model and build the trainer. Raises HoneError."""
    spec, checkpoint = inputs.job.spec, prepared.checkpoint
    has_gpu = torch.cuda.is_available()
    terminal.warn(sft_config.warnings(spec, has_gpu))
    if spec.resources.gpus and not has_gpu and (closed := describe_closed_devices()):
        terminal.warn([closed])
    plan = prepared.file.plan
    keywords = sft_config.sft_config(
        spec, root / CHECKPOINTS, use_cpu=not has_gpu, choices=plan.profile, sharding=plan.sharding
    )
    attention = next((choice.value for choice in plan.profile if choice.field == ATTENTION), None)
    network = base_model.load(prepared.base, spec, attention)
    config = deepcopy(network.config)
    step = checkpoint.account.step if checkpoint else -1
    metrics_log = MetricsLog(root / METRICS_LOG, step) if group.leads else None
    trainer = make_trainer(
        spec.lora,
        model=network,
        args=make_sft_config(keywords | ALREADY_PREPARED),
        train_dataset=prepared.train,
        eval_dataset=prepared.evaluation,
        processing_class=prepared.tokenizer,
        peft_config=lora_targets.lora_config(spec, prepared.base.commit, network),
        keep_checkpoints=spec.checkpoint.save_total_limit,
        before_sealing=metrics_log.flush if metrics_log else lambda: None,
        group=group,
    )
    return Run(prepared, group, config, metrics_log, trainer)


def train(run: Run, root: Path, stop: Stop, telemetry: Telemetry, terminal: Terminal) -> Account:
    """Train to the end. Raises Interrupted when stopped, once a checkpoint is saved; HoneError NonFiniteLoss."""
    trainer, checkpoint = run.trainer, run.prepared.checkpoint
    step = checkpoint.account.step if checkpoint else 0
    if checkpoint:
        terminal.note(f"going on from the checkpoint at step {step} of {checkpoint.account.total_steps}")
    trainer.remove_callback(PrinterCallback)
    if run.metrics_log:
        trainer.add_callback(Curves(root / LOGS, checkpoint.account if checkpoint else None, run.metrics_log.last))
    trainer.add_callback(ReportCallback(trainer, telemetry, run.metrics_log, terminal))
    trainer.add_callback(StopCallback(stop, run.group))
    try:
        with stop.deferred():
            account = trainer.fit(checkpoint, evaluation.before(trainer, run.prepared, root, stop, terminal))
            stopped = run.group.any(stop.requested)
    finally:
        if run.metrics_log:
            run.metrics_log.close()
    if stopped or stop.requested:
        raise Interrupted
    refuse_incomplete(account)
    telemetry.progress = telemetry.progress or Progress(step=step, total_steps=step, percent=100)
    return account


def refuse_incomplete(account: Account) -> None:
    """Raise HoneError InternalError when training ended before its last step without a signal to stop."""
    if not account.finished:
        raise HoneError(
            INTERNAL_ERROR,
            f"Training ended after step {account.step} of {account.total_steps}, and nothing told it to stop",
            remedy="No artifact was saved. Check how many batches the rows give with spec.training, and start again.",
        )


def keep(
    run: Run, job: FineTuneJob, root: Path, account: Account, parameters: Parameters, terminal: Terminal
) -> ArtifactManifest:
    """Save what the spec requests, manifest.json last. Of several processes, only the first writes."""
    first = evaluation.earlier(root, terminal)
    last = evaluation.after(run.trainer, run.prepared, account, terminal)
    network = run.trainer.accelerator.unwrap_model(run.trainer.model)
    weights = fsdp.gather(network)
    if not run.group.leads:
        manifest: ArtifactManifest = run.group.from_first(None)
        run.group.wait()
        return manifest
    kind, metrics = artifact.kind_of(job.spec), final_metrics(account) | evaluation.metrics(first, last)
    if gained := evaluation.sentence(metrics):
        terminal.note(gained)
    terminal.trained(metrics)
    terminal.note("saving " + " and ".join(str(root / folder) for folder in folders_of(kind)))
    saved_config.restore(network.config, run.config)
    base, fingerprint = run.prepared.base.reference, run.prepared.file.dataset_fingerprint
    card = partial(model_card, job, base, license_of(base_model.folder(run.prepared.base)), metrics, fingerprint)
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
        warn=lambda text: terminal.warn([text]),
    )
    config = base_config.read(base_model.load_config(run.prepared.base, job.spec.model), network)
    manifest = artifact.manifest_of(root, job, base, config, fingerprint, metrics, parameters.model_dump())
    settings = report.settings(job.spec, run.trainer.args, run.prepared.file.plan.profile)
    data = report.collect(root, manifest, run.prepared, settings, first, last)
    terminal.warn(report.write(root, data))
    write_manifest(root, manifest)
    run.group.from_first(manifest)  # a network disk may not show the file on every node yet
    run.group.wait()
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


def count(network: Any) -> Parameters:
    """Count the trainable and all parameters; in 4 bits, a byte of bitsandbytes holds two."""
    sizes = [
        (parameter.numel() * (2 if type(parameter).__name__ == "Params4bit" else 1), parameter.requires_grad)
        for parameter in network.parameters()
    ]
    return Parameters(trainable=sum(size for size, trained in sizes if trained), total=sum(size for size, _ in sizes))
