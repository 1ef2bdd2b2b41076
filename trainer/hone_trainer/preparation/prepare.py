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
from hone_trainer.checks.tokenized import SplitChecker, TokenizedSplit
from hone_trainer.config import sft_config
from hone_trainer.config.auto_profile import Choice, TrainingDevice
from hone_trainer.config.trl_config import make_sft_config
from hone_trainer.data import chat_templates, dataset, message_weights, statistics, template_reads
from hone_trainer.data.statistics import Truncation
from hone_trainer.data.tokenization import DatasetTokenizer
from hone_trainer.inputs import hub, model_files
from hone_trainer.inputs.manifest import JobInputs
from hone_trainer.memory import architecture, paging, render
from hone_trainer.models import base_model
from hone_trainer.preparation import compatibility, device_plan, prepared_dir, prompts
from hone_trainer.preparation.device_plan import DevicePlan
from hone_trainer.preparation.prepared_dir import PreparedFile
from hone_trainer.preparation.prompts import EvalPrompt
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
    questions: list[EvalPrompt]

    @property
    def segments(self) -> list[tuple[str, bool]]:
        """The first training row as pieces of text, each with whether it is learned."""
        return statistics.split_segments(self.train[0], self.tokenizer)


def prepare(inputs: JobInputs, root: Path, terminal: Terminal, device: TrainingDevice) -> Prepared:
    """Prepare what prepared/ does not hold yet, for training on the device. Raises HoneError."""
    spec = inputs.job.spec
    output_conflicts.refuse_blockers(root)
    output_dir.refuse_foreign_files(root)
    checkpoint, warnings_of_checkpoints = checkpoints.find_newest_checkpoint(root / CHECKPOINTS)
    terminal.print_warnings(warnings_of_checkpoints)
    run = output_dir.load_run_state(root, spec, has_checkpoint=checkpoint is not None)
    base = base_model.locate_base_model(spec.model, inputs, run.model_commit)
    found = dataset.locate_dataset(spec.dataset, inputs, run.dataset_commit)
    terminal.print_note(f"base model {base.location}{f' at commit {base.commit}' if base.commit else ''}")
    if found.files.files:
        terminal.print_note(found.files.summary())
    if checkpoint and found.fingerprint != run.dataset_fingerprint:
        raise HoneError(
            DATASET_INVALID,
            f"The dataset has changed since step {checkpoint.totals.step}, where the last run stopped",
            remedy=f"Restore it, or empty {root} to train from the beginning.",
        )
    digest = None if base.commit else model_files.digest_files(Path(base.location))
    if checkpoint and run.model_digest and digest != run.model_digest:
        raise HoneError(
            MODEL_INVALID,
            f"The base model in {base.location} has changed since step {checkpoint.totals.step}, where the last run "
            "stopped",
            remedy=f"Put it back, or empty {root} to train again.",
        )
    pins = base.reference.revision, found.commit or found.revision
    output_dir.save_run_state(root, output_dir.RunState(run.spec, *pins, found.fingerprint, digest))

    fingerprint = prepared_dir.make_fingerprint(spec, base, found)
    file = find_prepared(root, fingerprint, terminal)
    if file and not base_model.is_local(base):
        file = None
    with hub.work_offline() if file else nullcontext():
        tokenizer = load_tokenizer(base, spec)
        outline = build_outline(base, spec)
        check_arguments(spec, base, outline, tokenizer, device, root)
        questions, warnings = prompts.encode_prompts(
            spec.evaluation, tokenizer, partial(read_context, base, spec, outline)
        )
        asked = [question.tokens for question in questions]
        limits.check_prompts(asked, partial(base_model.load_config, base, spec.model), tokenizer)
        write = partial(
            prepared_dir.write_prepared,
            root,
            partial(prepare_rows, spec, base, found, tokenizer, outline, fingerprint, device),
        )
        if file is None:
            file = write()
        elif file.plan.device != device and checkpoint:
            terminal.print_note(f"what was chosen for {file.plan.device.name} stays: training has begun with it")
        elif file.plan.device != device:
            terminal.print_note(f"prepared for {file.plan.device.name}: choosing again for {device.name}")
            plan = plan_for_device(spec, base, file, device, root)
            file = prepared_dir.write_plan(root, file, plan) if file.has_the_rows_of(plan) else write()
    terminal.print_note(file.dataset.summary())
    terminal.print_note(
        render.describe_estimate(file.plan.estimate, spec.resources.gpus, uses_host=paging.is_on_host(spec))
    )
    for choice in file.plan.profile:
        terminal.print_note(f"profile: {choice.describe()}")
    rows = prepared_dir.open_datasets(root)
    warnings += rehearse(*rows, make_sft_config(make_keywords(spec, root, file.plan.profile)), spec)
    terminal.print_warnings(file.all_warnings + warnings)
    return Prepared(base, tokenizer, *rows, file, checkpoint, questions)


def find_prepared(root: Path, fingerprint: str, terminal: Terminal) -> PreparedFile | None:
    """Return what prepared/ holds for a fingerprint; None, after a warning, when it is damaged."""
    file = prepared_dir.read_prepared_file(root)
    if isinstance(file, PreparedFile) and file.fingerprint != fingerprint:
        return None
    damage = prepared_dir.find_damage(root, file) if isinstance(file, PreparedFile) else file
    if damage:
        terminal.print_warnings([f"preparing {root / PREPARED} again: {damage}"])
    return file if isinstance(file, PreparedFile) and not damage else None


@dataclass(frozen=True)
class PreparedHandle:
    """The part of Prepared that no file holds, for the processes that did not prepare."""

    base: base_model.BaseModel
    file: PreparedFile
    checkpoint: Checkpoint | None
    questions: list[EvalPrompt]

    @staticmethod
    def from_prepared(prepared: Prepared) -> "PreparedHandle":
        return PreparedHandle(prepared.base, prepared.file, prepared.checkpoint, prepared.questions)

    def open_prepared(self, spec: FineTuneJobSpec, root: Path) -> Prepared:
        """Open what was prepared in `root`."""
        with hub.work_offline():
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
    device: TrainingDevice,
    folder: Path,
) -> None:
    """Check what needs no rows, at every start: the prepared rows may be those of another spec.

    Raises HoneError InvalidSpec, ModelInvalid.
    """
    trials.check_types(spec.training)
    written = make_sft_config(make_keywords(spec, folder))
    compatibility.check_compatibility(spec, base.location, outline, written)
    trials.check_arguments(written, outline, device.kind)
    limits.check_padding(limits.read_model_limits(outline), tokenizer, spec.training)
    preconditions.check_tokens(tokenizer, spec.training)


def prepare_rows(
    spec: FineTuneJobSpec,
    base: base_model.BaseModel,
    found: dataset.DatasetLocation,
    tokenizer: PreTrainedTokenizerBase,
    outline: PreTrainedModel,
    fingerprint: str,
    device: TrainingDevice,
    scratch: Path,
) -> tuple[PreparedFile, Dataset, Dataset | None]:
    """Return the content of prepared/. Weights are downloaded last, so that mistakes in the data show first.

    Raises HoneError.
    """
    written = make_sft_config(make_keywords(spec, scratch))
    warnings = [] if base.commit else base_model.check_weights(base, spec.model, outline)
    reach = limits.read_model_limits(outline)
    rows = dataset.load_rows(found, written.seed, scratch, join_parts=not chat_templates.takes_text_parts(tokenizer))
    preconditions.check_tokenizer(rows, tokenizer, spec.training)
    warnings += rows.warnings + template_reads.find_unread(rows, tokenizer)
    warnings += message_weights.find_flags_without_effect(rows, spec.training)
    checker = SplitChecker(rows, tokenizer, spec.training, reach, base_model.load_stop_tokens(base, spec.model))
    whole = tokenize_split(rows.train, DatasetTokenizer(written, tokenizer, rows.train[0]), checker, TRAIN)

    lengths = statistics.make_split_report(whole.counts, Truncation.from_args(written, written.packing))
    planned = device_plan.DevicePlanner(spec, outline, device, lengths, written.max_length)
    plan, args = planned.make_plan(partial(make_keywords, spec, scratch))

    cutting = DatasetTokenizer(args, tokenizer, rows.train[0])
    train, trained = cut_split(whole, cutting, args.packing, checker, warnings)
    evaluation, evaluated = None, None
    if rows.evaluation is not None:
        held_out = tokenize_split(rows.evaluation, cutting, checker, EVALUATE)
        packing = args.packing if args.eval_packing is None else args.eval_packing
        evaluation, evaluated = cut_split(held_out, cutting, packing, checker, warnings)
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
        versions=prepared_dir.read_package_versions(),
        files={},
    )
    return file, train, evaluation


def plan_for_device(
    spec: FineTuneJobSpec, base: base_model.BaseModel, file: PreparedFile, device: TrainingDevice, root: Path
) -> DevicePlan:
    """Plan for another device than the one that `file` is planned for. Raises HoneError."""
    written = make_sft_config(make_keywords(spec, root))
    planned = device_plan.DevicePlanner(spec, build_outline(base, spec), device, file.dataset.train, written.max_length)
    return planned.make_plan(partial(make_keywords, spec, root))[0]


def read_context(base: base_model.BaseModel, spec: FineTuneJobSpec, outline: PreTrainedModel) -> int | None:
    """Return how many tokens the model can read; None: no limit is known. Raises HoneError."""
    found = limits.read_model_limits(outline)
    return found.positions if found.is_hard else base_model.read_context_length(base, spec.model)


def build_outline(base: base_model.BaseModel, spec: FineTuneJobSpec) -> PreTrainedModel:
    """Build the base model without weights. Raises HoneError."""
    config = base_model.load_config(base, spec.model)
    return architecture.build_meta_model(config, trust_remote_code=spec.model.trust_remote_code)


def make_keywords(spec: FineTuneJobSpec, folder: Path, choices: Sequence[Choice] = ()) -> dict[str, Any]:
    """Return the keywords of the SFTConfig that rows are prepared with."""
    return sft_config.make_sft_keywords(spec, folder, not torch.cuda.is_available(), choices)


def tokenize_split(given: Dataset, tokenizing: DatasetTokenizer, checker: SplitChecker, purpose: str) -> TokenizedSplit:
    """Return tokens and labels at full length. Raises HoneError naming the row that can't be tokenized."""
    try:
        whole = tokenizing.tokenize_full(given)
    except Exception as error:  # a chat template may raise anything
        found = failures.explain_failure(error, given, checker.data, tokenizing.tokenizer, tokenizing.chat_template)
        raise found from (None if found is error else error)
    if checker.data.messages.unlearned:
        whole = tokenizing.exclude_turns(given, whole, lambda index: find_places(checker.data, given, [index])[index])
    split = TokenizedSplit(given, whole, statistics.count_tokens(whole), purpose)
    checker.check_split(split)
    return split


def cut_split(
    split: TokenizedSplit, tokenizing: DatasetTokenizer, packing: bool, checker: SplitChecker, warnings: list[str]
) -> tuple[Dataset, SplitReport]:
    """Return the rows to train or evaluate on, and their report; add to the warnings.

    Raises HoneError AllRowsTruncated, DatasetInvalid, InvalidSpec.
    """
    args = tokenizing.sft_config
    kept = tokenizing.truncate(split.whole, packing)
    report = statistics.make_split_report(split.counts, Truncation.from_args(args, packing)).model_copy(
        update={"kept_rows": len(kept)}
    )
    warnings += statistics.find_length_warnings(report, args.max_length, packing, split.purpose)
    warnings += checker.find_warnings(split, tokenizing, packing)
    return kept, report
