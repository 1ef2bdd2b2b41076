"""Prepare, train, save: the part of a run that needs torch. Reads from top to bottom."""

import os
import warnings
from typing import Any

import torch
from datasets.utils.logging import disable_progress_bar
from hone_api.artifact import ArtifactManifest, write_manifest
from hone_api.layout import CHECKPOINTS, LOGS, METRICS_LOG
from hone_api.reports import Parameters
from peft import LoraConfig
from torch.utils.tensorboard import SummaryWriter
from transformers import PrinterCallback
from transformers.integrations.integration_utils import TensorBoardCallback
from transformers.utils import logging as transformers_logging
from trl.trainer.sft_config import SFTConfig

from hone_trainer import arguments, checkpoints, data, model, save, tree
from hone_trainer.callbacks import ReportCallback, StopCallback
from hone_trainer.card import model_card
from hone_trainer.manifest import Inputs
from hone_trainer.metricslog import MetricsLog
from hone_trainer.options import Options
from hone_trainer.stop import Interrupted, Stop
from hone_trainer.telemetry import Telemetry
from hone_trainer.terminal import Terminal
from hone_trainer.training import HoneTrainer, final_metrics


def pipeline(
    inputs: Inputs, options: Options, stop: Stop, telemetry: Telemetry, terminal: Terminal
) -> ArtifactManifest:
    """Everything from the base model to manifest.json. Raises HoneError; Interrupted once a checkpoint is saved."""
    spec, root = inputs.job.spec, options.output
    if not options.verbose:
        _quiet()
    for warning in arguments.warnings(spec):
        terminal.note(f"warning: {warning}")

    (root / CHECKPOINTS).mkdir(exist_ok=True)
    checkpoint = checkpoints.newest(root / CHECKPOINTS)
    run = tree.earlier(root, spec, has_checkpoint=checkpoint is not None)
    base = model.find(spec.model, inputs, run.model_commit)
    sft_config = SFTConfig(**arguments.sft_config(spec, root / CHECKPOINTS, use_cpu=not torch.cuda.is_available()))
    dataset = data.load(spec.dataset, inputs, sft_config.seed, run.dataset_commit)
    tree.remember(root, tree.Run(run.spec, base.commit, dataset.commit, dataset.fingerprint))

    network, tokenizer = model.load(base, spec.model)
    trainer = HoneTrainer(
        model=network,
        args=sft_config,
        train_dataset=dataset.train,
        eval_dataset=dataset.evaluation,
        processing_class=tokenizer,
        peft_config=LoraConfig(**arguments.lora_config(spec, base.commit)) if spec.method == "lora" else None,
        keep_checkpoints=spec.checkpoint.save_total_limit,
    )
    telemetry.parameters = count(trainer.model)
    terminal.note(describe(telemetry.parameters))
    resumed_step = checkpoint.account.step if checkpoint else 0
    if checkpoint:
        terminal.note(f"resuming from step {resumed_step}")
    metrics_log = MetricsLog(root / METRICS_LOG, resumed_step)
    trainer.remove_callback(PrinterCallback)
    writer = SummaryWriter(str(root / LOGS), purge_step=resumed_step + 1)
    trainer.add_callback(TensorBoardCallback(writer))  # type: ignore[no-untyped-call]
    trainer.add_callback(ReportCallback(trainer, telemetry, metrics_log, terminal))
    trainer.add_callback(StopCallback(stop))

    telemetry.stage = "Training"
    with stop.deferred():
        account = trainer.fit(checkpoint)
    metrics_log.close()
    if stop.requested:
        raise Interrupted

    telemetry.stage = "Saving"
    kind, metrics = save.kind_of(spec), final_metrics(account)
    terminal.note("saving " + " and ".join(f"{root / folder}" for folder in save.folders_of(kind)))
    card = model_card(inputs.job, base.reference, metrics, dataset.fingerprint)
    save.save_models(root, trainer.accelerator.unwrap_model(trainer.model), tokenizer, kind, card)
    manifest = save.manifest_of(
        root, inputs.job, base.reference, dataset.fingerprint, metrics, telemetry.parameters.model_dump()
    )
    write_manifest(root, manifest)
    return manifest


def count(network: Any) -> Parameters:
    """Trainable parameters, and all of them."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in network.parameters()]
    return Parameters(trainable=sum(size for size, trained in sizes if trained), total=sum(size for size, _ in sizes))


def describe(parameters: Parameters) -> str:
    """As PEFT prints it."""
    share = 100 * parameters.trainable / parameters.total
    return f"trainable params: {parameters.trainable:,} || all params: {parameters.total:,} || trainable%: {share:.4f}"


def _quiet() -> None:
    os.environ.setdefault("TQDM_DISABLE", "1")
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    disable_progress_bar()
    warnings.filterwarnings("ignore")
