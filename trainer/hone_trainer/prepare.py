"""The stage before training: find, check, tokenize and download, and leave it all in prepared/ and the cache."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jinja2
import torch
from datasets import Dataset
from hone_api.datareport import DatasetReport, SplitReport
from hone_api.finetunejob import FineTuneJobSpec
from hone_api.layout import CHECKPOINTS
from hone_api.reasons import DATASET_INVALID, HoneError
from transformers import PreTrainedTokenizerBase
from trl.trainer.sft_config import SFTConfig

from hone_trainer import arguments, checkpoints, checks, data, datareport, hub, methods, model, prepared, prompts, tree
from hone_trainer.checkpoints import Checkpoint
from hone_trainer.manifest import Inputs
from hone_trainer.prepared import PreparedFile
from hone_trainer.prompts import Question
from hone_trainer.settings import make_sft_config
from hone_trainer.terminal import Terminal
from hone_trainer.tokenizing import Tokenizing


@dataclass(frozen=True)
class Prepared:
    """What training starts from: nothing is left that the user could have got wrong, but memory."""

    base: model.BaseModel
    tokenizer: PreTrainedTokenizerBase
    train: Dataset
    evaluation: Dataset | None
    file: PreparedFile
    checkpoint: Checkpoint | None
    questions: list[Question]

    @property
    def segments(self) -> list[tuple[str, bool]]:
        """The first row to train on in pieces of text: each with whether it is learned."""
        return datareport.segments(self.train[0], self.tokenizer)


def prepare(inputs: Inputs, root: Path, terminal: Terminal) -> Prepared:
    """Do what prepared/ does not hold yet. Raises HoneError."""
    spec = inputs.job.spec
    tree.refuse_foreign(root)
    checkpoint, warnings_of_checkpoints = checkpoints.newest(root / CHECKPOINTS)
    terminal.warn(warnings_of_checkpoints)
    run = tree.earlier(root, spec, has_checkpoint=checkpoint is not None)
    base = model.find(spec.model, inputs, run.model_commit)
    keywords = arguments.sft_config(spec, root / CHECKPOINTS, use_cpu=not torch.cuda.is_available())
    methods.check(spec, base, make_sft_config(keywords))
    found = data.find(spec.dataset, inputs, run.dataset_commit)
    terminal.note(f"base model {base.location}{f' at commit {base.commit}' if base.commit else ''}")
    if checkpoint and found.fingerprint != run.dataset_fingerprint:
        raise HoneError(
            DATASET_INVALID,
            f"The dataset has changed since step {checkpoint.account.step}, where the last run stopped",
            remedy=f"Put it back, or empty {root} to train anew.",
        )
    tree.remember(root, tree.Run(run.spec, base.commit, found.commit, found.fingerprint))

    fingerprint = prepared.fingerprint(spec, base, found)
    file = prepared.read(root)
    load_context = partial(model.context, base, spec.model)
    if file and file.fingerprint == fingerprint and model.is_here(base):
        with hub.offline():
            tokenizer = load_tokenizer(base, spec)
            questions, warnings = prompts.encode(spec.evaluation, tokenizer, load_context)
    else:
        tokenizer = load_tokenizer(base, spec)
        questions, warnings = prompts.encode(spec.evaluation, tokenizer, load_context)
        file = prepared.write(root, partial(fill, spec, base, found, tokenizer, fingerprint))
    terminal.note(file.dataset.summary())
    terminal.warn(file.warnings + warnings)
    return Prepared(base, tokenizer, *prepared.open_datasets(root), file, checkpoint, questions)


@dataclass(frozen=True)
class Found:
    """The part of Prepared that no file holds, for the processes that did not prepare."""

    base: model.BaseModel
    file: PreparedFile
    checkpoint: Checkpoint | None
    questions: list[Question]

    @staticmethod
    def of(prepared: Prepared) -> "Found":
        return Found(prepared.base, prepared.file, prepared.checkpoint, prepared.questions)

    def open(self, spec: FineTuneJobSpec, root: Path) -> Prepared:
        """What was prepared in `root`."""
        with hub.offline():
            tokenizer = load_tokenizer(self.base, spec)
        rows = prepared.open_datasets(root)
        return Prepared(self.base, tokenizer, *rows, self.file, self.checkpoint, self.questions)


def load_tokenizer(base: model.BaseModel, spec: FineTuneJobSpec) -> PreTrainedTokenizerBase:
    """The base model's tokenizer, with the template that spec.dataset.chatTemplate gives. Raises HoneError."""
    tokenizer = model.load_tokenizer(base, spec.model)
    if spec.dataset.chat_template:
        tokenizer.chat_template = checks.chat_template(spec.dataset.chat_template, tokenizer)
    return tokenizer


def fill(
    spec: FineTuneJobSpec,
    base: model.BaseModel,
    found: data.Found,
    tokenizer: PreTrainedTokenizerBase,
    fingerprint: str,
    scratch: Path,
) -> tuple[PreparedFile, Dataset, Dataset | None]:
    """What prepared/ holds. The weights are downloaded last: a mistake in the data shows before. Raises HoneError."""
    keywords = arguments.sft_config(spec, scratch, use_cpu=not torch.cuda.is_available())
    report, warnings, train, evaluation = tokenize(spec, found, make_sft_config(keywords), tokenizer, scratch)
    model.download(base, spec.model)
    file = PreparedFile(
        fingerprint=fingerprint,
        model=base.reference,
        dataset_fingerprint=found.fingerprint,
        dataset=report,
        warnings=warnings,
        versions=prepared.versions(),
    )
    return file, train, evaluation


def tokenize(
    spec: FineTuneJobSpec, found: data.Found, args: SFTConfig, tokenizer: PreTrainedTokenizerBase, scratch: Path
) -> tuple[DatasetReport, list[str], Dataset, Dataset | None]:
    """The report, warnings, and the rows to train and to evaluate on, tokenized. Raises HoneError."""
    rows = data.load(found, args.seed, scratch)
    warnings = checks.before(rows, tokenizer, spec.training)
    tokenizing = Tokenizing(args, tokenizer, rows.train[0])

    def split(given: Dataset, packing: bool, purpose: str) -> tuple[SplitReport, Dataset]:
        try:
            whole = tokenizing.whole(given)
        except (jinja2.TemplateError, RuntimeError) as error:
            raise checks.refused_row(error, rows, tokenizer) from error
        cut = tokenizing.cut(whole, packing)
        keeps_all = args.max_length is None or (packing and args.packing_strategy != "bfd")
        report = datareport.examine(whole, cut, None if keeps_all else args.max_length)
        warnings.extend(datareport.warnings(report, args.max_length, packing, purpose))
        warnings.extend(checks.unaligned(given, whole, tokenizer, purpose))
        return report, cut

    trained, train = split(rows.train, args.packing, "to train on")
    evaluated, evaluation = None, None
    if rows.evaluation is not None:
        packing = args.packing if args.eval_packing is None else args.eval_packing
        evaluated, evaluation = split(rows.evaluation, packing, "to evaluate on")
    report = DatasetReport(format=rows.format, max_length=args.max_length, train=trained, evaluation=evaluated)
    return report, warnings, train, evaluation
