"""A dataset: resolve and fingerprint it, then read, shape, limit and split its rows.

Input is spec.dataset, or an entry of spec.datasets; output is `LoadedDataset` with the rows in Arrow files. `files`
finds files, `readers` read them, `formats` judges and shapes rows. `preparation.prepare` calls `locate_datasets`, and
`preparation.rows` calls `load_rows`; `tokenization` comes next.
"""

import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pyarrow
from datasets import Dataset, Features, Json, List, Value, load_dataset
from datasets.exceptions import DatasetGenerationError
from hone_api.finetunejobs.sources import DatasetSource
from hone_api.finetunejobs.spec import FineTuneJobSpec
from hone_api.reasons import DATASET_EMPTY, DATASET_INVALID, DATASET_NOT_FOUND, HoneError

from hone_trainer.data import formats
from hone_trainer.data.files import DataFiles, find_downloaded_files, find_files
from hone_trainer.data.messages import MessageCounts
from hone_trainer.data.readers import row_files
from hone_trainer.data.readers.csv_rows import suggest_header
from hone_trainer.data.readers.row_streams import ColumnSurvey, FileStream, HubStream, Stream, survey_columns
from hone_trainer.inputs import hub
from hone_trainer.inputs.manifest import JobInputs
from hone_trainer.inputs.named_datasets import NamedDataset, list_datasets
from hone_trainer.remote.fetch import fetch
from hone_trainer.remote.locations import locate
from hone_trainer.runtime.errors import UnclassifiedError, classify_error, make_hub_error, translate_disk_full


@dataclass(frozen=True)
class DatasetLocation:
    """The location of the dataset: `files` here, or `commit` on the hub. `fingerprint` covers all its rows.

    `revision` names the content of a download from a URI.
    """

    named: NamedDataset
    files: DataFiles
    commit: str | None
    fingerprint: str
    revision: str | None = None

    @property
    def source(self) -> DatasetSource:
        return self.named.source


@dataclass(frozen=True)
class LoadedDataset:
    """Rows to train on and, with evalFraction or evalSplit, rows to evaluate on; `streams` yield them with their
    places.
    """

    train: Dataset
    evaluation: Dataset | None
    layout: formats.RowLayout
    streams: list[Stream]
    messages: MessageCounts
    warnings: list[str]

    @property
    def format(self) -> formats.RowFormat:
        """The format of the rows."""
        return self.layout.format

    @property
    def conversational(self) -> bool:
        """Whether rows hold messages, which the chat template turns into text."""
        first = self.train[0]
        return not isinstance(first.get("messages", first.get("prompt", "")), str)

    def iterate_rows(self) -> Iterator[row_files.Row]:
        """Yield the place of each row, and the row in its format."""
        for where, row in itertools.chain.from_iterable(stream() for stream in self.streams):
            yield where, formats.shape_row(where, row, self.layout)


def locate_datasets(spec: FineTuneJobSpec, inputs: JobInputs, pins: Sequence[str | None]) -> list[DatasetLocation]:
    """Resolve all datasets of a job; `pins` are those of `locate_dataset`, as far as known. Raises as it does."""
    found = []
    for named, pinned in zip_longest(list_datasets(spec), pins):
        with named.name_failures():
            found.append(locate_dataset(named, inputs, pinned))
    return found


def compute_fingerprint(found: Sequence[DatasetLocation], weights: Sequence[float] | None) -> str:
    """Return the fingerprint of all datasets: that of the only one, or a digest over all and their weights."""
    if len(found) == 1:
        return found[0].fingerprint
    content = json.dumps([[one.fingerprint for one in found], weights])
    return f"sha256:{hashlib.sha256(content.encode()).hexdigest()}"


def locate_dataset(named: NamedDataset, inputs: JobInputs, pinned: str | None) -> DatasetLocation:
    """Resolve a dataset; `pinned` is the commit, or the revision of a URI, that an earlier start found.

    Raises HoneError DatasetNotFound, DatasetInvalid, HubUnauthorized, HubUnreachable, InvalidSpec, and what
    `remote.fetch` raises.
    """
    source = named.source
    commit, revision = None, None
    if source.name:
        commit = pinned or hub.resolve_commit("dataset", source.name, source.revision or "main")
        identity: Any = [source.name, commit, source.config, source.split, source.eval_split]
        files = DataFiles()
    else:
        if source.uri:
            downloaded = fetch(locate("dataset", source, inputs, named.field), pinned)
            revision, files = downloaded.revision, find_downloaded_files(downloaded.folder, source.uri)
        else:
            files = find_files(source, inputs)
        identity = [[path.name, _hash_file(path)] for path, _ in files.files]
    shaping = [source.format, source.columns, source.max_samples, source.eval_fraction]
    digest = hashlib.sha256(json.dumps([identity, shaping], sort_keys=True).encode()).hexdigest()
    return DatasetLocation(named, files, commit, f"sha256:{digest}", revision)


def load_rows(found: DatasetLocation, seed: int, scratch: Path, *, join_parts: bool = False) -> LoadedDataset:
    """Read the rows into Arrow files below `scratch`. The same seed holds out the same rows.

    `join_parts`: content in text parts becomes one string.

    Raises HoneError DatasetNotFound, DatasetColumnMissing, DatasetInvalid, DatasetEmpty, HubUnauthorized,
    HubUnreachable.
    """
    source = found.source
    prefix = found.named.place_prefix
    files = [(path, f"{prefix}{name}") for path, name in found.files.files]
    streams: list[Stream] = (
        _open_hub_streams(found, scratch) if found.commit else [FileStream(files, source.max_samples)]
    )
    survey = survey_columns(streams)
    first = next(iter(streams[0]()), None)
    if first is None:
        what = f"spec.dataset.split is {source.split}, which" if source.name else found.files.summarize()
        raise HoneError(DATASET_EMPTY, f"{what} has no rows")
    renames = {str(column): own for column, own in source.columns.items()}
    try:
        layout = formats.detect_layout(source.format, renames, survey.found, first[1], join_parts=join_parts)
    except HoneError as error:
        raise _add_header_hint(error, found.files, survey) from None
    warnings, counts = formats.find_unused(layout, survey.found, survey.rows), MessageCounts()
    shaped_first = first[0], formats.shape_row(*first, layout)
    position = f"{found.named.position}-" if found.named.position else ""
    parts = [
        _store_rows(stream, layout, shaped_first, counts, scratch / f"{position}{number}")
        for number, stream in enumerate(streams)
    ]
    if source.eval_split and not len(parts[1]):
        raise HoneError(DATASET_EMPTY, f"spec.dataset.evalSplit is {source.eval_split}, which has no rows")
    train, evaluation = parts if len(parts) == 2 else _split_dataset(parts[0], source.eval_fraction, seed)
    return LoadedDataset(train, evaluation, layout, streams, counts, warnings)


def _open_hub_streams(found: DatasetLocation, scratch: Path) -> list[Stream]:
    """Return a stream for each split."""
    source, name = found.source, str(found.source.name)
    splits = [split for split in (source.split, source.eval_split) if split]
    folder = hub.find_cached_snapshot("dataset", name, str(found.commit)) if hub.is_offline() else None
    where: dict[str, Any] = {"path": str(folder)} if folder else {"path": name, "revision": found.commit}
    try:
        parts = load_dataset(**where, name=source.config, split=splits, cache_dir=str(scratch / "hub"))
    except ValueError as error:  # what datasets raises for a config or split that is not there
        text = " ".join(str(error).split())
        field, value = ("config", source.config)
        if "split" in text:
            wrong = source.eval_split and f'"{source.eval_split}"' in text
            field, value = ("evalSplit", source.eval_split) if wrong else ("split", source.split)
        raise HoneError(DATASET_NOT_FOUND, f"spec.dataset.{field} is {value}, and {name} says: {text}") from error
    except Exception as error:
        raise make_hub_error(error, "dataset", name, source.revision or "main") from error
    limits = [source.max_samples, None]
    shown = found.named.label or name
    return [
        HubStream(f"{shown}, split {split}", part, limit)
        for split, part, limit in zip(splits, parts, limits, strict=False)
    ]


def _store_rows(
    stream: Stream, layout: formats.RowLayout, first: row_files.Row, counts: MessageCounts, folder: Path
) -> Dataset:
    """Shape and store all rows; `first` is the first row to train on, shaped, whose kind all others must have."""

    def shape_rows() -> Iterator[dict[str, Any]]:
        for where, row in stream():
            found = formats.shape_row(where, row, layout, counts)
            formats.check_kind(where, found, first)
            yield found

    features = _infer_features(first[1])
    try:
        with translate_disk_full(folder):
            return Dataset.from_generator(shape_rows, features=features, cache_dir=str(folder), fingerprint=folder.name)
    except DatasetGenerationError as error:
        failure = classify_error(error)
        raise (
            _find_arrow_refusal(stream, layout) if isinstance(failure, UnclassifiedError) else None
        ) or failure from error


def _infer_features(row: dict[str, Any]) -> Features:
    """Return types that keep messages as they are written: Arrow's structs would add null for every key of another."""
    messages, text = List(Json()), Value("string")
    as_json = ("tools", "chat_template_kwargs")
    return Features(
        {
            name: Json() if name in as_json else messages if isinstance(value, list) else text
            for name, value in row.items()
        }
    )


def _find_arrow_refusal(stream: Stream, layout: formats.RowLayout) -> HoneError | None:
    """Return the failure that names the first row which can't be stored."""
    for where, row in stream():
        shaped = formats.shape_row(where, row, layout)
        try:
            Dataset.from_list([shaped], features=_infer_features(shaped))
        except (pyarrow.ArrowException, ValueError, OverflowError, TypeError) as error:
            return HoneError(DATASET_INVALID, f"{where} can't be stored: {error}")
    return None


def _add_header_hint(error: HoneError, files: DataFiles, survey: ColumnSurvey) -> HoneError:
    """Return the failure of a format that was not found, with what may be wrong with the header of a CSV file."""
    hint = suggest_header(list(survey.found)) if any(name.lower().endswith(".csv") for _, name in files.files) else ""
    return HoneError(error.reason, error.message, remedy=f"{hint} {error.remedy}") if hint else error


def _split_dataset(dataset: Dataset, fraction: float | None, seed: int) -> tuple[Dataset, Dataset | None]:
    if not fraction:
        return dataset, None
    held_out = max(1, round(len(dataset) * fraction))
    if held_out >= len(dataset):
        raise HoneError(
            DATASET_EMPTY,
            f"spec.dataset.evalFraction is {fraction}, which leaves none of {len(dataset)} rows to train on",
            remedy="Lower it, or give more rows.",
        )
    parts = dataset.train_test_split(test_size=held_out, seed=seed)
    return parts["train"], parts["test"]


def _hash_file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise HoneError(DATASET_INVALID, f"{path} can't be read: {error.strerror}") from None
