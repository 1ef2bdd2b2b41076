"""Make the rows of prepared/: load, check and tokenize each dataset, mix them, and cut what training reads.

In: the datasets that `data.dataset` has located. Out: the tokenized rows, and prepared.json. Datasets are checked and
tokenized one by one, since each has a format of its own; the mixture is truncated and packed as one dataset.
`prepare` calls `prepare_rows` for what prepared/ does not hold yet.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset
from hone_api.artifacts.dataset_report import DatasetReport, MixedDataset, SplitReport
from trl.trainer.sft_config import SFTConfig

from hone_trainer.checks import failures, limits, preconditions
from hone_trainer.checks.limits import ModelLimits
from hone_trainer.checks.rehearsal import rehearse
from hone_trainer.checks.row_places import find_places
from hone_trainer.checks.tokenized import SplitChecker, TokenizedSplit
from hone_trainer.config.trl_config import make_sft_config
from hone_trainer.data import chat_templates, dataset, message_weights, mixture, statistics, template_reads
from hone_trainer.data.dataset import DatasetLocation, LoadedDataset
from hone_trainer.data.files import DataFiles
from hone_trainer.data.statistics import TokenCounts, Truncation
from hone_trainer.data.tokenization import DatasetTokenizer
from hone_trainer.inputs.named_datasets import NamedDataset, describe_source
from hone_trainer.models import base_model
from hone_trainer.preparation import device_plan, prepared_dir
from hone_trainer.preparation.preparation import Preparation
from hone_trainer.preparation.prepared_dir import PreparedFile

TRAIN, EVALUATE = "to train on", "to evaluate on"


@dataclass(frozen=True)
class DatasetPart:
    """One of the datasets of a job, with its rows to train on tokenized at full length."""

    named: NamedDataset
    rows: LoadedDataset
    checker: SplitChecker
    train: TokenizedSplit
    warnings: list[str]

    def make_tokenizer(self, args: SFTConfig) -> DatasetTokenizer:
        """Return the tokenizer of this dataset's format."""
        return DatasetTokenizer(args, self.checker.tokenizer, self.rows.train[0])


def prepare_rows(job: Preparation, scratch: Path) -> tuple[PreparedFile, Dataset, Dataset | None]:
    """Return the content of prepared/. Weights are downloaded last, so that mistakes in the data show first.

    `scratch` is a folder for temporary files. Raises HoneError.
    """
    spec, base, outline = job.spec, job.base, job.outline
    written = make_sft_config(job.make_keywords())
    warnings = [] if base.commit else base_model.check_weights(base, spec.model, outline)
    reach, stops = limits.read_model_limits(outline), base_model.load_stop_tokens(base, spec.model)
    parts = []
    for location in job.sources:
        with location.named.name_failures():
            parts.append(load_part(job, location, written, reach, stops, scratch))
        warnings += location.named.name_all(parts[-1].warnings)
    order = mixture.find_order([len(part.train.whole) for part in parts], spec.dataset_weights, written.seed)
    counts = TokenCounts.join([part.train.counts for part in parts], order)

    lengths = statistics.make_split_report(counts, Truncation.from_args(written, written.packing))
    planned = device_plan.DevicePlanner(spec, outline, job.device, lengths, written.max_length)
    plan, args = planned.make_plan(job.make_keywords)

    to_train = [(part, part.train) for part in parts]
    train, trained, trained_parts = cut_splits(to_train, order, args, args.packing, warnings)
    datasets = describe_parts(parts, spec.dataset_weights, trained_parts, order, args)
    warnings += find_unused_rows(parts, datasets)
    evaluation, evaluated = None, None
    if held_out := tokenize_held_out(parts, args):
        packing = args.packing if args.eval_packing is None else args.eval_packing
        all_rows = np.arange(sum(len(split.whole) for _, split in held_out))
        evaluation, evaluated, evaluated_parts = cut_splits(held_out, all_rows, args, packing, warnings)
        for (part, split), report in zip(held_out, evaluated_parts, strict=True):
            warnings += part.named.name_all(part.checker.find_leaks(split, counts))
            if datasets:
                datasets[part.named.position].evaluation = report
    rehearse(train, evaluation, args, spec)
    if base.commit:
        base_model.download(base, spec.model)
        warnings += base_model.check_weights(base, spec.model, outline)
    file = PreparedFile(
        fingerprint=job.fingerprint,
        model=base.reference,
        dataset_fingerprint=dataset.compute_fingerprint(job.sources, spec.dataset_weights),
        dataset=DatasetReport(
            format=", ".join(dict.fromkeys(part.rows.format for part in parts)),
            max_length=args.max_length,
            train=trained,
            evaluation=evaluated,
            datasets=datasets,
            **join_files([location.files for location in job.sources]).report(),
        ),
        plan=plan,
        warnings=warnings,
        versions=prepared_dir.read_package_versions(),
        files={},
    )
    return file, train, evaluation


def load_part(
    job: Preparation, location: DatasetLocation, args: SFTConfig, reach: ModelLimits, stops: set[int], scratch: Path
) -> DatasetPart:
    """Load, check and tokenize one dataset. Raises HoneError."""
    tokenizer, training = job.tokenizer, job.spec.training
    join_parts = not chat_templates.takes_text_parts(tokenizer)
    rows = dataset.load_rows(location, args.seed, scratch, join_parts=join_parts)
    preconditions.check_tokenizer(rows, tokenizer, training)
    warnings = rows.warnings + template_reads.find_unread(rows, tokenizer)
    warnings += message_weights.find_flags_without_effect(rows, training)
    checker = SplitChecker(rows, tokenizer, training, reach, stops)
    train = tokenize_split(rows.train, DatasetTokenizer(args, tokenizer, rows.train[0]), checker, TRAIN)
    return DatasetPart(location.named, rows, checker, train, warnings)


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


def tokenize_held_out(parts: Sequence[DatasetPart], args: SFTConfig) -> list[tuple[DatasetPart, TokenizedSplit]]:
    """Return the rows to evaluate on of each dataset that has some. Raises HoneError."""
    found = []
    for part in parts:
        if part.rows.evaluation is not None:
            with part.named.name_failures():
                split = tokenize_split(part.rows.evaluation, part.make_tokenizer(args), part.checker, EVALUATE)
            found.append((part, split))
    return found


def cut_splits(
    splits: Sequence[tuple[DatasetPart, TokenizedSplit]],
    order: np.ndarray,
    args: SFTConfig,
    packing: bool,
    warnings: list[str],
) -> tuple[Dataset, SplitReport, list[SplitReport]]:
    """Return the rows to train or evaluate on, in their order, their report, and that of each dataset.

    Adds to the warnings. Raises HoneError AllRowsTruncated, DatasetInvalid, InvalidSpec.
    """
    cut = Truncation.from_args(args, packing)
    whole = mixture.join_rows([split.whole for _, split in splits], order)
    rows = splits[0][0].make_tokenizer(args).truncate(whole, packing)
    counts = TokenCounts.join([split.counts for _, split in splits], order)
    total = statistics.make_split_report(counts, cut).model_copy(update={"kept_rows": len(rows)})
    reports = []
    for part, split in splits:
        report = total
        if len(splits) > 1:
            report = statistics.make_split_report(split.counts, cut)
            report.kept_rows = report.rows - report.empty_rows - report.dropped_rows
        reports.append(report)
        with part.named.name_failures():
            found = statistics.find_length_warnings(report, args.max_length, packing, split.purpose)
            found += part.checker.find_warnings(split, part.make_tokenizer(args), packing)
        warnings += part.named.name_all(found)
    return rows, total, reports


def describe_parts(
    parts: Sequence[DatasetPart],
    weights: Sequence[float] | None,
    reports: Sequence[SplitReport],
    order: np.ndarray,
    args: SFTConfig,
) -> list[MixedDataset]:
    """Return the part of each of several datasets in the rows to train on; nothing for a single one."""
    if len(parts) == 1:
        return []
    counts = TokenCounts.join([part.train.counts for part in parts], order)
    tokens = Truncation.from_args(args, args.packing).count_kept_tokens(counts, drops_rows=not args.packing)
    ends = np.cumsum([len(part.train.whole) for part in parts])
    origins = np.searchsorted(ends, order, side="right")
    total = max(int(tokens.sum()), 1)
    return [
        MixedDataset(
            name=describe_source(part.named.source),
            format=part.rows.format,
            weight=weights[number] if weights else None,
            used_rows=int((origins == number).sum()),
            used_tokens=int(tokens[origins == number].sum()),
            share=int(tokens[origins == number].sum()) / total,
            train=report,
        )
        for number, (part, report) in enumerate(zip(parts, reports, strict=True))
    ]


def find_unused_rows(parts: Sequence[DatasetPart], datasets: Sequence[MixedDataset]) -> list[str]:
    """Return a warning for each dataset of which the weights leave out rows."""
    return [
        f"{one.train.rows - one.used_rows} of {one.train.rows} rows {TRAIN} of {part.named.label} are left out: with "
        "these weights, another dataset has no more rows first"
        for part, one in zip(parts, datasets, strict=False)  # none for a single one
        if one.used_rows < one.train.rows
    ]


def join_files(found: Sequence[DataFiles]) -> DataFiles:
    """Return the files of several datasets."""
    return DataFiles([file for one in found for file in one.files], [name for one in found for name in one.left_out])
