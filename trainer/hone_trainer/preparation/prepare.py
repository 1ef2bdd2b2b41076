"""The stage before training: resolve, check, tokenize and download.

It takes the job's inputs and leaves the rows and the plan in prepared/, and the base model in the cache. Mistakes of
the user are found here, before a GPU is used; only memory can still fail later. What an earlier start prepared is
reused when nothing that it depends on has changed. `prepare` is called by `pipeline` and by `hone-trainer prepare`. It
locates the inputs, loads a `Preparation`, checks it, and has `rows` fill prepared/.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from datasets import Dataset
from hone_api.finetunejobs.spec import FineTuneJobSpec
from hone_api.layout import CHECKPOINTS, PREPARED
from hone_api.reasons import DATASET_INVALID, MODEL_INVALID, HoneError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hone_trainer.checks import limits, preconditions, trials
from hone_trainer.checks.rehearsal import rehearse
from hone_trainer.config.auto_profile import TrainingDevice
from hone_trainer.config.trl_config import make_sft_config
from hone_trainer.data import chat_templates, dataset, statistics
from hone_trainer.inputs import hub, model_files
from hone_trainer.inputs.manifest import JobInputs
from hone_trainer.inputs.named_datasets import list_datasets
from hone_trainer.memory import architecture, paging, render
from hone_trainer.models import base_model
from hone_trainer.preparation import compatibility, device_plan, prepared_dir
from hone_trainer.preparation.device_plan import DevicePlan
from hone_trainer.preparation.preparation import Preparation
from hone_trainer.preparation.prepared_dir import PreparedFile
from hone_trainer.preparation.prompts import EvalPrompt
from hone_trainer.preparation.rows import prepare_rows
from hone_trainer.progress.terminal import Terminal
from hone_trainer.storage import checkpoints, output_conflicts, output_dir
from hone_trainer.storage.checkpoints import Checkpoint


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
    fingerprint = prepared_dir.make_fingerprint(spec, base, dataset.compute_fingerprint(found, spec.dataset_weights))
    file = find_prepared(root, fingerprint, terminal)
    if file and not base_model.is_local(base):
        file = None
    with hub.work_offline() if file else nullcontext():
        tokenizer = load_tokenizer(base, spec)
        job = Preparation(spec, root, device, base, found, fingerprint, tokenizer, build_outline(base, spec))
        check_arguments(job)
        with name_template_field(spec):
            questions, warnings = job.encode_prompts()
        file = update_prepared(job, file, terminal, has_checkpoint=checkpoint is not None)
    terminal.print_note(file.dataset.summarize())
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
) -> tuple[base_model.BaseModel, list[dataset.DatasetLocation], Checkpoint | None]:
    """Return the base model, the datasets and the newest checkpoint; save what identifies them for later starts.

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
    found = dataset.locate_datasets(spec, inputs, run.dataset_pins)
    fingerprint = dataset.compute_fingerprint(found, spec.dataset_weights)
    terminal.print_note(f"base model {base.location}{f' at commit {base.commit}' if base.commit else ''}")
    for location in found:
        if location.files.files:
            terminal.print_note(location.named.name_dataset(location.files.summarize()))
    if checkpoint and fingerprint != run.dataset_fingerprint:
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
    pins = [location.commit or location.revision for location in found]
    state = output_dir.RunState(run.spec, base.reference.revision, pins[0], fingerprint, digest, pins[1:])
    output_dir.save_run_state(root, state)
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
    """Load the base model's tokenizer, with the chatTemplate of a dataset and spec.training.eosToken.

    Raises HoneError.
    """
    tokenizer = base_model.load_tokenizer(base, spec.model)
    # As SFTTrainer does before it tokenizes; a token outside the vocabulary is refused by `checks`.
    if spec.training.eos_token in tokenizer.get_vocab():
        tokenizer.eos_token = spec.training.eos_token
    if spec.chat_template:
        with name_template_field(spec):
            chat_templates.check_syntax(spec.chat_template, tokenizer, "spec.dataset.chatTemplate")
        tokenizer.chat_template = spec.chat_template
    return tokenizer


def name_template_field(spec: FineTuneJobSpec) -> AbstractContextManager[None]:
    """Return a context in which failures name the field of the chat template, which all datasets share."""
    found = list_datasets(spec)
    return replace(next((one for one in found if one.source.chat_template), found[0]), label="").name_failures()


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
