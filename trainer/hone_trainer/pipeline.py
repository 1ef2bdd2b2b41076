"""Prepare, train, save: the part of a run that needs torch. Reads from top to bottom."""

import os
import warnings
from functools import partial
from typing import Any

import jinja2
import torch
from datasets.utils.logging import disable_progress_bar
from hone_api.artifact import ArtifactManifest, write_manifest
from hone_api.finetunejob import FineTuneJobSpec
from hone_api.layout import CHECKPOINTS, LOGS, METRICS_LOG
from hone_api.reasons import DATASET_INVALID, INVALID_SPEC, HoneError
from hone_api.reports import Parameters, Progress
from peft import LoraConfig
from torch.utils.tensorboard import SummaryWriter
from transformers import PrinterCallback
from transformers.integrations.integration_utils import TensorBoardCallback
from transformers.utils import logging as transformers_logging
from trl.trainer.sft_config import SFTConfig

from hone_trainer import arguments, checkpoints, checks, data, model, save, tree
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
        quiet()
    has_gpu = torch.cuda.is_available()
    terminal.warn(arguments.warnings(spec, has_gpu))

    checkpoint = checkpoints.newest(root / CHECKPOINTS)
    run = tree.earlier(root, spec, has_checkpoint=checkpoint is not None)
    sft_config = make_sft_config(arguments.sft_config(spec, root / CHECKPOINTS, use_cpu=not has_gpu))
    base = model.find(spec.model, inputs, run.model_commit)
    dataset = data.load(spec.dataset, inputs, sft_config.seed, run.dataset_commit)
    if checkpoint and dataset.fingerprint != run.dataset_fingerprint:
        raise HoneError(
            DATASET_INVALID,
            f"The dataset has changed since step {checkpoint.account.step}, where the last run stopped",
            remedy=f"Put it back, or remove {root / CHECKPOINTS} to train anew.",
        )
    tree.remember(root, tree.Run(run.spec, base.commit, dataset.commit, dataset.fingerprint))

    network, tokenizer = model.load(base, spec.model)
    use_cache = getattr(network.config, "use_cache", None)
    checks.before(dataset, tokenizer, spec.training)
    step = checkpoint.account.step if checkpoint else 0
    metrics_log = MetricsLog(root / METRICS_LOG, step)
    try:
        trainer = make_trainer(network, tokenizer, sft_config, dataset, spec, base.commit, metrics_log)
    except jinja2.TemplateError as error:
        raise checks.refused_by_template(error, dataset.rows(), tokenizer) from error
    terminal.warn(checks.after(trainer, dataset))
    telemetry.parameters = count(trainer.model)
    terminal.note(describe(telemetry.parameters))

    if checkpoint:
        terminal.note(f"going on from the checkpoint at step {step} of {checkpoint.account.total_steps}")
    trainer.remove_callback(PrinterCallback)
    writer = SummaryWriter(str(root / LOGS), purge_step=step + 1)
    trainer.add_callback(TensorBoardCallback(writer))  # type: ignore[no-untyped-call]
    trainer.add_callback(ReportCallback(trainer, telemetry, metrics_log, terminal))
    trainer.add_callback(StopCallback(stop))

    telemetry.stage = "Training"
    with stop.deferred():
        account = trainer.fit(checkpoint)
    metrics_log.close()
    if stop.requested:
        raise Interrupted
    telemetry.progress = telemetry.progress or Progress(step=step, total_steps=step, percent=100)

    telemetry.stage = "Saving"
    kind, metrics = save.kind_of(spec), final_metrics(account)
    terminal.note("saving " + " and ".join(str(root / folder) for folder in save.folders_of(kind)))
    network.config.use_cache = use_cache  # training turns it off, and serving wants it as it was
    card = partial(model_card, inputs.job, base.reference, metrics, dataset.fingerprint)
    save.save_models(root, trainer.accelerator.unwrap_model(trainer.model), tokenizer, kind, card)
    parameters = telemetry.parameters.model_dump()
    manifest = save.manifest_of(root, inputs.job, base.reference, dataset.fingerprint, metrics, parameters)
    write_manifest(root, manifest)
    return manifest


def make_sft_config(keywords: dict[str, Any]) -> SFTConfig:
    """SFTConfig, whose own checks become HoneError InvalidSpec."""
    try:
        return SFTConfig(**keywords)
    except (ValueError, TypeError, ImportError) as error:
        raise HoneError(INVALID_SPEC, f"spec.training is refused by TRL: {' '.join(str(error).split())}") from error


def make_trainer(
    network: Any,
    tokenizer: Any,
    sft_config: SFTConfig,
    dataset: data.Data,
    spec: FineTuneJobSpec,
    commit: str | None,
    metrics_log: MetricsLog,
) -> HoneTrainer:
    """The trainer, its dataset tokenized. Raises HoneError InvalidSpec when the adapter doesn't fit the model."""
    lora = LoraConfig(**arguments.lora_config(spec, commit)) if spec.method == "lora" else None
    try:
        return HoneTrainer(
            model=network,
            args=sft_config,
            train_dataset=dataset.train,
            eval_dataset=dataset.evaluation,
            processing_class=tokenizer,
            peft_config=lora,
            keep_checkpoints=spec.checkpoint.save_total_limit,
            before_sealing=metrics_log.flush,
        )
    except ValueError as error:
        text = " ".join(str(error).split())
        if spec.lora and ("target modules" in text.lower() or "target_modules" in text):
            raise HoneError(
                INVALID_SPEC,
                f"spec.lora.targetModules is {spec.lora.target_modules}: {text}",
                remedy="Name linear layers that the model has, or set it to all-linear.",
            ) from error
        raise HoneError(INVALID_SPEC, f"TRL refuses the combination of model, dataset and arguments: {text}") from error


def count(network: Any) -> Parameters:
    """Trainable parameters, and all of them."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in network.parameters()]
    return Parameters(trainable=sum(size for size, trained in sizes if trained), total=sum(size for size, _ in sizes))


def describe(parameters: Parameters) -> str:
    """As PEFT prints it."""
    share = 100 * parameters.trainable / parameters.total
    return f"trainable params: {parameters.trainable:,} || all params: {parameters.total:,} || trainable%: {share:.4f}"


def quiet() -> None:
    """Leave the terminal to Hone's own lines; the libraries' warnings come with --verbose."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    disable_progress_bar()
    warnings.filterwarnings("ignore")
