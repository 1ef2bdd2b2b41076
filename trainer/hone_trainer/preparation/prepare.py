"""The stage before training: resolve, check, tokenize and download.

It takes the job's inputs and leaves the rows and the plan in prepared/, and the base model in the cache. Mistakes of
the user are found here, before a GPU is used; only memory can still fail later. What an earlier start prepared is
reused when nothing that it depends on has changed. `prepare` is called by `pipeline` and by `hone-trainer prepare`. It
locates the inputs, loads a `Preparation`, checks it, and has `prepare_rows` fill prepared/.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

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
from hone_trainer.config.auto_profile import TrainingDevice
from hone_trainer.config.trl_config import make_sft_config
from hone_trainer.data import chat_templates, dataset, message_weights, statistics, template_reads
from hone_trainer.data.statistics import Truncation
from hone_trainer.data.tokenization import DatasetTokenizer
from hone_trainer.inputs import hub, model_files
from hone_trainer.inputs.manifest import JobInputs
from hone_trainer.memory import architecture, paging, render
from hone_trainer.models import base_model
from hone_trainer.preparation import compatibility, device_plan, prepared_dir
from hone_trainer.preparation.device_plan import DevicePlan
from hone_trainer.preparation.preparation import Preparation
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
    base, found, checkpoint = locate_inputs(inputs, root, terminal)
    fingerprint = prepared_dir.make_fingerprint(spec, base, found)
    file = find_prepared(root, fingerprint, terminal)
    if file and not base_model.is_local(base):
        file = None
    with hub.work_offline() if file else nullcontext():
        tokenizer = load_tokenizer(base, spec)
        job = Preparation(spec, root, device, base, found, fingerprint, tokenizer, build_outline(base, spec))
        check_arguments(job)
        questions, warnings = job.encode_prompts()
        file = update_prepared(job, file, terminal, has_checkpoint=checkpoint is not None)
    terminal.print_note(file.dataset.summary())
    terminal.print_note(
        render.describe_estimate(file.plan.estimate, spec.resources.gpus, uses_host=paging.is_on_host(spec))
    )
    for choice in file.plan.profile:
        terminal.print_note(f"profile: {choice.describe()}")
    rows = prepared_dir.open_datasets(root)
    warnings += rehearse(*rows, make_sft_config(job.make_keywords(file.plan.profile)), spec)
    terminal.print_warnings(file.all_warnings + warnings)
    return Prepared(base, tokenizer, *rows, file, checkpoint, questions)


def locate_inputs(
    inputs: JobInputs, root: Path, terminal: Terminal
) -> tuple[base_model.BaseModel, dataset.DatasetLocation, Checkpoint | None]:
    """Return the base model, the dataset and the newest checkpoint; save what identifies them for later starts.

    Raises HoneError DatasetInvalid, ModelInvalid when a run has begun with other files; others for inputs that are
    missing.
    """
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
    return base, found, checkpoint


def find_prepared(root: Path, fingerprint: str, terminal: Terminal) -> PreparedFile | None:
    """Return what prepared/ holds for a fingerprint; None, after a warning, when it is damaged."""
    file = prepared_dir.read_prepared_file(root)
    if isinstance(file, PreparedFile) and file.fingerprint != fingerprint:
        return None
    damage = prepared_dir.find_damage(root, file) if isinstance(file, PreparedFile) else file
    if damage:
        terminal.print_warnings([f"preparing {root / PREPARED} again: {damage}"])
    return file if isinstance(file, PreparedFile) and not damage else None


def update_prepared(
    job: Preparation, file: PreparedFile | None, terminal: Terminal, *, has_checkpoint: bool
) -> PreparedFile:
    """Return `file`, with another plan when the device is another; write what is missing. Raises HoneError.

    A run that has begun keeps its plan.
    """
    if file is None:
        return write_rows(job)
    planned_for = file.plan.device
    if planned_for == job.device:
        return file
    if has_checkpoint:
        terminal.print_note(f"what was chosen for {planned_for.name} stays: training has begun with it")
        return file
    terminal.print_note(f"prepared for {planned_for.name}: choosing again for {job.device.name}")
    plan = plan_for_device(job, file)
    return prepared_dir.write_plan(job.root, file, plan) if file.has_the_rows_of(plan) else write_rows(job)


def write_rows(job: Preparation) -> PreparedFile:
    """Write the rows and the plan, complete or not at all. Raises HoneError."""
    return prepared_dir.write_prepared(job.root, lambda scratch: prepare_rows(job, scratch))


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


def check_arguments(job: Preparation) -> None:
    """Check what needs no rows, at every start: the prepared rows may be those of another spec.

    Raises HoneError InvalidSpec, ModelInvalid.
    """
    spec, outline = job.spec, job.outline
    trials.check_types(spec.training)
    written = make_sft_config(job.make_keywords())
    compatibility.check_compatibility(spec, job.base.location, outline, written)
    trials.check_arguments(written, outline, job.device.kind)
    limits.check_padding(limits.read_model_limits(outline), job.tokenizer, spec.training)
    preconditions.check_tokens(job.tokenizer, spec.training)


def prepare_rows(job: Preparation, scratch: Path) -> tuple[PreparedFile, Dataset, Dataset | None]:
    """Return the content of prepared/. Weights are downloaded last, so that mistakes in the data show first.

    `scratch` is a folder for temporary files. Raises HoneError.
    """
    spec, base, tokenizer, outline = job.spec, job.base, job.tokenizer, job.outline
    written = make_sft_config(job.make_keywords())
    warnings = [] if base.commit else base_model.check_weights(base, spec.model, outline)
    reach = limits.read_model_limits(outline)
    rows = dataset.load_rows(
        job.source, written.seed, scratch, join_parts=not chat_templates.takes_text_parts(tokenizer)
    )
    preconditions.check_tokenizer(rows, tokenizer, spec.training)
    warnings += rows.warnings + template_reads.find_unread(rows, tokenizer)
    warnings += message_weights.find_flags_without_effect(rows, spec.training)
    checker = SplitChecker(rows, tokenizer, spec.training, reach, base_model.load_stop_tokens(base, spec.model))
    whole = tokenize_split(rows.train, DatasetTokenizer(written, tokenizer, rows.train[0]), checker, TRAIN)

    lengths = statistics.make_split_report(whole.counts, Truncation.from_args(written, written.packing))
    planned = device_plan.DevicePlanner(spec, outline, job.device, lengths, written.max_length)
    plan, args = planned.make_plan(job.make_keywords)

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
        fingerprint=job.fingerprint,
        model=base.reference,
        dataset_fingerprint=job.source.fingerprint,
        dataset=DatasetReport(
            format=rows.format,
            max_length=args.max_length,
            train=trained,
            evaluation=evaluated,
            **job.source.files.report(),
        ),
        plan=plan,
        warnings=warnings,
        versions=prepared_dir.read_package_versions(),
        files={},
    )
    return file, train, evaluation


def plan_for_device(job: Preparation, file: PreparedFile) -> DevicePlan:
    """Plan for another device than the one that `file` is planned for. Raises HoneError."""
    written = make_sft_config(job.make_keywords())
    outline = build_outline(job.base, job.spec)  # planning adds the adapter to its outline
    planned = device_plan.DevicePlanner(job.spec, outline, job.device, file.dataset.train, written.max_length)
    return planned.make_plan(job.make_keywords)[0]


def build_outline(base: base_model.BaseModel, spec: FineTuneJobSpec) -> PreTrainedModel:
    """Build the base model without weights. Raises HoneError."""
    config = base_model.load_config(base, spec.model)
    return architecture.build_meta_model(config, trust_remote_code=spec.model.trust_remote_code)


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
