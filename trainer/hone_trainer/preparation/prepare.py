"""The stage before training: resolve, check, tokenize and download.

It takes the job's inputs and leaves the rows and the plan in prepared/, and the base model in the cache. Mistakes of
the
user are found here, before a GPU is used; only memory can still fail later. What an earlier start prepared is reused
when nothing that it depends on has changed. `pipeline` calls this, and so does `hone-trainer prepare`.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from hone_api.artifacts.dataset_report import DatasetReport, SplitReport
from hone_api.finetunejobs.spec import FineTuneJobSpec
from hone_api.layout import CHECKPOINTS, PREPARED
from hone_api.reasons import DATASET_INVALID, MODEL_INVALID, HoneError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hone_trainer.checks import failures, limits, preconditions, trials
from hone_trainer.checks.rehearsal import rehearse
from hone_trainer.checks.row_places import find_places
from hone_trainer.checks.tokenized import Checker, Split
from hone_trainer.config import sft_config
from hone_trainer.config.auto_profile import Choice, Device
from hone_trainer.config.trl_config import make_sft_config
from hone_trainer.data import chat_templates, dataset, message_weights, statistics, template_reads
from hone_trainer.data.statistics import Cut
from hone_trainer.data.tokenization import Tokenizing
from hone_trainer.inputs import hub, model_files
from hone_trainer.inputs.manifest import Inputs
from hone_trainer.memory import architecture, paging, render
from hone_trainer.models import base_model
from hone_trainer.preparation import compatibility, device_plan, prepared_dir, prompts
from hone_trainer.preparation.device_plan import DevicePlan
from hone_trainer.preparation.prepared_dir import PreparedFile
from hone_trainer.preparation.prompts import Question
from hone_trainer.progress.terminal import Terminal
from hone_trainer.storage import checkpoints, output_conflicts, output_dir
from hone_trainer.storage.checkpoints import Checkpoint

TRAIN, EVALUATE = "to train on", "to evaluate on"


@dataclass(frozen=True)
class Prepared:
    """All that training starts from. Mistakes of the user have been refused; only memory can still fail."""

    base: base_model.BaseModel
    tokenizer: PreTrainedTokenizerBase
    train: Dataset
    evaluation: Dataset | None
    file: PreparedFile
    checkpoint: Checkpoint | None
    questions: list[Question]

    @property
    def segments(self) -> list[tuple[str, bool]]:
        """The first training row as pieces of text, each with whether it is learned."""
        return statistics.segments(self.train[0], self.tokenizer)


def prepare(inputs: Inputs, root: Path, terminal: Terminal, device: Device) -> Prepared:
    """Prepare what prepared/ does not hold yet, for training on the device. Raises HoneError."""
    spec = inputs.job.spec
    output_conflicts.refuse_blockers(root)
    output_dir.refuse_foreign(root)
    checkpoint, warnings_of_checkpoints = checkpoints.newest(root / CHECKPOINTS)
    terminal.warn(warnings_of_checkpoints)
    run = output_dir.earlier(root, spec, has_checkpoint=checkpoint is not None)
    base = base_model.find(spec.model, inputs, run.model_commit)
    found = dataset.find(spec.dataset, inputs, run.dataset_commit)
    terminal.note(f"base model {base.location}{f' at commit {base.commit}' if base.commit else ''}")
    if found.files.files:
        terminal.note(found.files.summary())
    if checkpoint and found.fingerprint != run.dataset_fingerprint:
        raise HoneError(
            DATASET_INVALID,
            f"The dataset has changed since step {checkpoint.account.step}, where the last run stopped",
            remedy=f"Put it back, or empty {root} to train anew.",
        )
    digest = None if base.commit else model_files.digest_files(Path(base.location))
    if checkpoint and run.model_digest and digest != run.model_digest:
        raise HoneError(
            MODEL_INVALID,
            f"The base model in {base.location} has changed since step {checkpoint.account.step}, where the last run "
            "stopped",
            remedy=f"Put it back, or empty {root} to train again.",
        )
    output_dir.remember(root, output_dir.Run(run.spec, base.commit, found.commit, found.fingerprint, digest))

    fingerprint = prepared_dir.fingerprint(spec, base, found)
    file = find_prepared(root, fingerprint, terminal)
    if file and not base_model.is_here(base):
        file = None
    with hub.offline() if file else nullcontext():
        tokenizer = load_tokenizer(base, spec)
        outline = outline_of(base, spec)
        check_arguments(spec, base, outline, tokenizer, device, root)
        questions, warnings = prompts.encode(spec.evaluation, tokenizer, partial(read_context, base, spec, outline))
        asked = [question.tokens for question in questions]
        limits.check_prompts(asked, partial(base_model.load_config, base, spec.model), tokenizer)
        write = partial(
            prepared_dir.write, root, partial(fill, spec, base, found, tokenizer, outline, fingerprint, device)
        )
        if file is None:
            file = write()
        elif file.plan.device != device and checkpoint:
            terminal.note(f"what was chosen for {file.plan.device.name} stays: training has begun with it")
        elif file.plan.device != device:
            terminal.note(f"prepared for {file.plan.device.name}: choosing anew for {device.name}")
            plan = plan_anew(spec, base, file, device, root)
            file = prepared_dir.write_plan(root, file, plan) if file.has_the_rows_of(plan) else write()
    terminal.note(file.dataset.summary())
    terminal.note(render.sentence(file.plan.estimate, spec.resources.gpus, uses_host=paging.is_on_host(spec)))
    for choice in file.plan.profile:
        terminal.note(f"profile: {choice.sentence()}")
    rows = prepared_dir.open_datasets(root)
    warnings += rehearse(*rows, make_sft_config(keywords(spec, root, file.plan.profile)), spec)
    terminal.warn(file.all_warnings + warnings)
    return Prepared(base, tokenizer, *rows, file, checkpoint, questions)


def find_prepared(root: Path, fingerprint: str, terminal: Terminal) -> PreparedFile | None:
    """Return what prepared/ holds for a fingerprint; None, after a warning, when it is damaged."""
    file = prepared_dir.read(root)
    if isinstance(file, PreparedFile) and file.fingerprint != fingerprint:
        return None
    damage = prepared_dir.find_damage(root, file) if isinstance(file, PreparedFile) else file
    if damage:
        terminal.warn([f"preparing {root / PREPARED} again: {damage}"])
    return file if isinstance(file, PreparedFile) and not damage else None


@dataclass(frozen=True)
class Found:
    """The part of Prepared that no file holds, for the processes that did not prepare."""

    base: base_model.BaseModel
    file: PreparedFile
    checkpoint: Checkpoint | None
    questions: list[Question]

    @staticmethod
    def of(prepared: Prepared) -> "Found":
        return Found(prepared.base, prepared.file, prepared.checkpoint, prepared.questions)

    def open(self, spec: FineTuneJobSpec, root: Path) -> Prepared:
        """Open what was prepared in `root`."""
        with hub.offline():
            tokenizer = load_tokenizer(self.base, spec)
        rows = prepared_dir.open_datasets(root)
        return Prepared(self.base, tokenizer, *rows, self.file, self.checkpoint, self.questions)


def load_tokenizer(base: base_model.BaseModel, spec: FineTuneJobSpec) -> PreTrainedTokenizerBase:
    """Load the base model's tokenizer, with spec.dataset.chatTemplate and spec.training.eosToken. Raises HoneError."""
    tokenizer = base_model.load_tokenizer(base, spec.model)
    # As SFTTrainer does before it tokenizes; a token outside the vocabulary is refused by `checks`.
    if spec.training.eos_token in tokenizer.get_vocab():
        tokenizer.eos_token = spec.training.eos_token
    if spec.dataset.chat_template:
        chat_templates.check_syntax(spec.dataset.chat_template, tokenizer, "spec.dataset.chatTemplate")
        tokenizer.chat_template = spec.dataset.chat_template
    return tokenizer


def check_arguments(
    spec: FineTuneJobSpec,
    base: base_model.BaseModel,
    outline: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    device: Device,
    folder: Path,
) -> None:
    """Check what needs no rows, at every start: the prepared rows may be those of another spec.

    Raises HoneError InvalidSpec, ModelInvalid.
    """
    trials.check_types(spec.training)
    written = make_sft_config(keywords(spec, folder))
    compatibility.check(spec, base.location, outline, written)
    trials.check_arguments(written, outline, device.kind)
    limits.check_padding(limits.read_limits(outline), tokenizer, spec.training)
    preconditions.check_tokens(tokenizer, spec.training)


def fill(
    spec: FineTuneJobSpec,
    base: base_model.BaseModel,
    found: dataset.Found,
    tokenizer: PreTrainedTokenizerBase,
    outline: PreTrainedModel,
    fingerprint: str,
    device: Device,
    scratch: Path,
) -> tuple[PreparedFile, Dataset, Dataset | None]:
    """Return the content of prepared/. Weights are downloaded last, so that mistakes in the data show first.

    Raises HoneError.
    """
    written = make_sft_config(keywords(spec, scratch))
    warnings = [] if base.commit else base_model.check_weights(base, spec.model, outline)
    reach = limits.read_limits(outline)
    rows = dataset.load(found, written.seed, scratch, join_parts=not chat_templates.takes_text_parts(tokenizer))
    preconditions.check_tokenizer(rows, tokenizer, spec.training)
    warnings += rows.warnings + template_reads.find_unread(rows, tokenizer)
    warnings += message_weights.find_flags_without_effect(rows, spec.training)
    checker = Checker(rows, tokenizer, spec.training, reach, base_model.load_stop_tokens(base, spec.model))
    whole = tokenize(rows.train, Tokenizing(written, tokenizer, rows.train[0]), checker, TRAIN)

    lengths = statistics.examine(whole.counts, Cut.of(written, written.packing))
    planned = device_plan.Planned(spec, outline, device, lengths, written.max_length)
    plan, args = planned.settle(partial(keywords, spec, scratch))

    cutting = Tokenizing(args, tokenizer, rows.train[0])
    train, trained = cut(whole, cutting, args.packing, checker, warnings)
    evaluation, evaluated = None, None
    if rows.evaluation is not None:
        held_out = tokenize(rows.evaluation, cutting, checker, EVALUATE)
        packing = args.packing if args.eval_packing is None else args.eval_packing
        evaluation, evaluated = cut(held_out, cutting, packing, checker, warnings)
        warnings += checker.find_leaks(held_out, whole)
    rehearse(train, evaluation, args, spec)
    if base.commit:
        base_model.download(base, spec.model)
        warnings += base_model.check_weights(base, spec.model, outline)
    file = PreparedFile(
        fingerprint=fingerprint,
        model=base.reference,
        dataset_fingerprint=found.fingerprint,
        dataset=DatasetReport(
            format=rows.format, max_length=args.max_length, train=trained, evaluation=evaluated, **found.files.report()
        ),
        plan=plan,
        warnings=warnings,
        versions=prepared_dir.versions(),
        files={},
    )
    return file, train, evaluation


def plan_anew(
    spec: FineTuneJobSpec, base: base_model.BaseModel, file: PreparedFile, device: Device, root: Path
) -> DevicePlan:
    """Plan for another device than the one that `file` is planned for. Raises HoneError."""
    written = make_sft_config(keywords(spec, root))
    planned = device_plan.Planned(spec, outline_of(base, spec), device, file.dataset.train, written.max_length)
    return planned.settle(partial(keywords, spec, root))[0]


def read_context(base: base_model.BaseModel, spec: FineTuneJobSpec, outline: PreTrainedModel) -> int | None:
    """Return how many tokens the model can read; None: no limit is known. Raises HoneError."""
    found = limits.read_limits(outline)
    return found.positions if found.is_hard else base_model.context(base, spec.model)


def outline_of(base: base_model.BaseModel, spec: FineTuneJobSpec) -> PreTrainedModel:
    """Build the base model without weights. Raises HoneError."""
    config = base_model.load_config(base, spec.model)
    return architecture.build(config, trust_remote_code=spec.model.trust_remote_code)


def keywords(spec: FineTuneJobSpec, folder: Path, choices: Sequence[Choice] = ()) -> dict[str, Any]:
    """Return the keywords of the SFTConfig that rows are prepared with."""
    return sft_config.sft_config(spec, folder, not torch.cuda.is_available(), choices)


def tokenize(given: Dataset, tokenizing: Tokenizing, checker: Checker, purpose: str) -> Split:
    """Return tokens and labels at full length. Raises HoneError naming the row that can't be tokenized."""
    try:
        whole = tokenizing.whole(given)
    except Exception as error:  # a chat template may raise anything
        found = failures.explain_failure(error, given, checker.data, tokenizing.tokenizer, tokenizing.chat_template)
        raise found from (None if found is error else error)
    if checker.data.messages.unlearned:
        whole = tokenizing.exclude_turns(given, whole, lambda index: find_places(checker.data, given, [index])[index])
    split = Split(given, whole, statistics.count(whole), purpose)
    checker.check_split(split)
    return split


def cut(
    split: Split, tokenizing: Tokenizing, packing: bool, checker: Checker, warnings: list[str]
) -> tuple[Dataset, SplitReport]:
    """Return the rows to train or evaluate on, and their report; add to the warnings.

    Raises HoneError AllRowsTruncated, DatasetInvalid, InvalidSpec.
    """
    args = tokenizing.sft_config
    kept = tokenizing.cut(split.whole, packing)
    report = statistics.examine(split.counts, Cut.of(args, packing)).model_copy(update={"kept_rows": len(kept)})
    warnings += statistics.warnings(report, args.max_length, packing, split.purpose)
    warnings += checker.find_warnings(split, tokenizing, packing)
    return kept, report
