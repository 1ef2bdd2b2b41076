"""Prepare, train, save: the part of a run that needs torch. Reads from top to bottom."""

import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jinja2
import torch
from datasets.utils.logging import disable_progress_bar
from hone_api.artifact import ArtifactManifest, write_manifest
from hone_api.finetunejob import FineTuneJob, LoraOptions
from hone_api.layout import CHECKPOINTS, LOGS, METRICS_LOG
from hone_api.reasons import DATASET_INVALID, INVALID_SPEC, HoneError
from hone_api.reports import Parameters, Progress
from transformers import PreTrainedTokenizerBase, PrinterCallback
from transformers.utils import logging as transformers_logging
from trl.trainer.sft_config import SFTConfig

from hone_trainer import adapters, arguments, checkpoints, checks, data, model, optimizers, save, tree
from hone_trainer.callbacks import ReportCallback, StopCallback
from hone_trainer.card import model_card
from hone_trainer.checkpoints import Account, Checkpoint
from hone_trainer.curves import Curves
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
    if not options.verbose:
        quiet()
    prepared = prepare(inputs, options.output, terminal)
    telemetry.parameters = count(prepared.trainer.model)
    terminal.note(describe(telemetry.parameters))

    telemetry.stage = "Training"
    account = train(prepared, options.output, stop, telemetry, terminal)

    telemetry.stage = "Saving"
    return keep(prepared, inputs.job, options.output, account, telemetry.parameters, terminal)


@dataclass(frozen=True)
class Prepared:
    """What training needs: nothing is left that the user could have got wrong, but memory."""

    base: model.BaseModel
    tokenizer: PreTrainedTokenizerBase
    use_cache: bool | None
    fingerprint: str
    checkpoint: Checkpoint | None
    metrics_log: MetricsLog
    trainer: HoneTrainer


def prepare(inputs: Inputs, root: Path, terminal: Terminal) -> Prepared:
    """Find, load, check and tokenize. Raises HoneError."""
    spec = inputs.job.spec
    has_gpu = torch.cuda.is_available()
    terminal.warn(arguments.warnings(spec, has_gpu))
    tree.refuse_foreign(root)
    checkpoint, warnings_of_checkpoints = checkpoints.newest(root / CHECKPOINTS)
    terminal.warn(warnings_of_checkpoints)
    run = tree.earlier(root, spec, has_checkpoint=checkpoint is not None)
    sft_config = make_sft_config(arguments.sft_config(spec, root / CHECKPOINTS, use_cpu=not has_gpu))

    base = model.find(spec.model, inputs, run.model_commit)
    dataset = data.load(spec.dataset, inputs, sft_config.seed, run.dataset_commit)
    terminal.note(f"base model {base.location}{f' at commit {base.commit}' if base.commit else ''}")
    terminal.note(f"dataset of {dataset.format} rows, {dataset.sizes()}")
    if checkpoint and dataset.fingerprint != run.dataset_fingerprint:
        raise HoneError(
            DATASET_INVALID,
            f"The dataset has changed since step {checkpoint.account.step}, where the last run stopped",
            remedy=f"Put it back, or empty {root} to train anew.",
        )
    tree.remember(root, tree.Run(run.spec, base.commit, dataset.commit, dataset.fingerprint))

    network, tokenizer = model.load(base, spec)
    use_cache = getattr(network.config, "use_cache", None)
    checks.before(dataset, tokenizer, spec.training)
    metrics_log = MetricsLog(root / METRICS_LOG, checkpoint.account.step if checkpoint else 0)
    trainer = make_trainer(
        spec.lora,
        dataset,
        model=network,
        args=sft_config,
        processing_class=tokenizer,
        peft_config=adapters.lora_config(spec, base.commit, network),
        keep_checkpoints=spec.checkpoint.save_total_limit,
        before_sealing=metrics_log.flush,
    )
    optimizers.check(trainer)
    terminal.warn(checks.after(trainer, dataset))
    return Prepared(base, tokenizer, use_cache, dataset.fingerprint, checkpoint, metrics_log, trainer)


def train(prepared: Prepared, root: Path, stop: Stop, telemetry: Telemetry, terminal: Terminal) -> Account:
    """Train to the end. Raises Interrupted when told to stop, once a checkpoint is saved; HoneError NonFiniteLoss."""
    trainer, checkpoint = prepared.trainer, prepared.checkpoint
    step = checkpoint.account.step if checkpoint else 0
    if checkpoint:
        terminal.note(f"going on from the checkpoint at step {step} of {checkpoint.account.total_steps}")
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Curves(root / LOGS, checkpoint.account if checkpoint else None, prepared.metrics_log.last))
    trainer.add_callback(ReportCallback(trainer, telemetry, prepared.metrics_log, terminal))
    trainer.add_callback(StopCallback(stop))
    with stop.deferred():
        account = trainer.fit(checkpoint)
    prepared.metrics_log.close()
    if stop.requested:
        raise Interrupted
    telemetry.progress = telemetry.progress or Progress(step=step, total_steps=step, percent=100)
    return account


def keep(
    prepared: Prepared, job: FineTuneJob, root: Path, account: Account, parameters: Parameters, terminal: Terminal
) -> ArtifactManifest:
    """Save what the spec asks to keep, manifest.json last."""
    kind, metrics = save.kind_of(job.spec), final_metrics(account)
    terminal.note("saving " + " and ".join(str(root / folder) for folder in save.folders_of(kind)))
    network = prepared.trainer.accelerator.unwrap_model(prepared.trainer.model)
    if prepared.use_cache is not None:
        network.config.use_cache = prepared.use_cache  # training turns it off, and serving wants it as it was
    base, fingerprint = prepared.base.reference, prepared.fingerprint
    card = partial(model_card, job, base, metrics, fingerprint)
    load_base = partial(model.load_unquantized, prepared.base, job.spec.model)
    save.save_models(root, network, prepared.tokenizer, kind, card, load_base)
    manifest = save.manifest_of(root, job, base, fingerprint, metrics, parameters.model_dump())
    write_manifest(root, manifest)
    return manifest


def make_sft_config(keywords: dict[str, Any]) -> SFTConfig:
    """SFTConfig, whose own checks become HoneError InvalidSpec."""
    try:
        return SFTConfig(**keywords)
    except (ValueError, TypeError, ImportError) as error:
        raise HoneError(INVALID_SPEC, f"spec.training is refused by TRL: {' '.join(str(error).split())}") from error


def make_trainer(lora: LoraOptions | None, dataset: data.Data, **keywords: Any) -> HoneTrainer:
    """The trainer, its dataset tokenized.

    Raises HoneError InvalidSpec when the adapter doesn't fit the model, DatasetInvalid when a row doesn't fit its
    chat template.
    """
    try:
        return HoneTrainer(train_dataset=dataset.train, eval_dataset=dataset.evaluation, **keywords)
    except jinja2.TemplateError as error:
        raise checks.refused_by_template(error, dataset.rows(), keywords["processing_class"]) from error
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
    """Trainable parameters, and all of them; a byte of bitsandbytes holds two in 4 bits."""
    sizes = [
        (parameter.numel() * (2 if type(parameter).__name__ == "Params4bit" else 1), parameter.requires_grad)
        for parameter in network.parameters()
    ]
    return Parameters(trainable=sum(size for size, trained in sizes if trained), total=sum(size for size, _ in sizes))


def describe(parameters: Parameters) -> str:
    """As PEFT prints it."""
    share = 100 * parameters.trainable / parameters.total
    return f"trainable params: {parameters.trainable:,} || all params: {parameters.total:,} || trainable%: {share:.4f}"


def quiet() -> None:
    """Leave the terminal to Hone's own lines; the libraries' warnings come with --verbose."""
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    disable_progress_bar()
    warnings.filterwarnings("ignore")
