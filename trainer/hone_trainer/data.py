"""The dataset: found and fingerprinted, then read, shaped into its format, cut and split."""

import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset
from hone_api.reasons import DATASET_EMPTY, DATASET_INVALID, DATASET_NOT_FOUND, INVALID_SPEC, HoneError
from hone_api.sources import DatasetSource

from hone_trainer import formats, hub, rows
from hone_trainer.errors import hub_error, writing
from hone_trainer.manifest import Inputs
from hone_trainer.streams import FileStream, HubStream, Stream, survey_columns


@dataclass(frozen=True)
class Found:
    """Where the dataset is: `files` here, or `commit` on the hub. `fingerprint` is that of all its rows."""

    source: DatasetSource
    files: list[Path]
    commit: str | None
    fingerprint: str


@dataclass(frozen=True)
class Data:
    """Rows to train on and, with evalFraction or evalSplit, rows to evaluate on; `streams` tells where each stands."""

    train: Dataset
    evaluation: Dataset | None
    format: formats.Format
    streams: list[Stream]
    columns: dict[str, str]

    @property
    def conversational(self) -> bool:
        """Whether rows hold messages, which the chat template turns into text."""
        first = self.train[0]
        return not isinstance(first.get("messages", first.get("prompt", "")), str)

    def rows(self) -> Iterator[rows.Row]:
        """Where each row stands, and the row in its format."""
        for where, row in itertools.chain.from_iterable(stream() for stream in self.streams):
            yield where, formats.shape(where, row, self.columns)


def find(source: DatasetSource, inputs: Inputs, pinned: str | None) -> Found:
    """Resolve the dataset; `pinned` is the commit that an earlier start of this run resolved.

    Raises HoneError DatasetNotFound, DatasetInvalid, HubUnauthorized, HubUnreachable, InvalidSpec.
    """
    if source.name:
        commit = pinned or hub.resolve("dataset", source.name, source.revision or "main")
        identity: Any = [source.name, commit, source.config, source.split, source.eval_split]
        files: list[Path] = []
    else:
        commit, files = None, _files(source, inputs)
        identity = [[path.name, _sha256(path)] for path in files]
    shaping = [source.format, source.columns, source.max_samples, source.eval_fraction]
    digest = hashlib.sha256(json.dumps([identity, shaping], sort_keys=True).encode()).hexdigest()
    return Found(source, files, commit, f"sha256:{digest}")


def load(found: Found, seed: int, scratch: Path) -> Data:
    """Read the rows into Arrow files below `scratch`. The same seed holds out the same rows.

    Raises HoneError DatasetNotFound, DatasetColumnMissing, DatasetInvalid, DatasetEmpty, HubUnauthorized,
    HubUnreachable.
    """
    source = found.source
    limit = source.max_samples
    streams: list[Stream] = _hub_streams(found, scratch) if found.commit else [FileStream(found.files, limit)]
    survey = survey_columns(streams[:1])
    if not survey.rows:
        what = f"spec.dataset.split is {source.split}, which" if source.name else found.files[0].name
        raise HoneError(DATASET_EMPTY, f"{what} has no rows")
    form, columns = formats.judge(
        source.format, {str(column): own for column, own in source.columns.items()}, set(survey.found)
    )
    parts = [_dataset(stream, columns, scratch / str(number)) for number, stream in enumerate(streams)]
    if source.eval_split and not len(parts[1]):
        raise HoneError(DATASET_EMPTY, f"spec.dataset.evalSplit is {source.eval_split}, which has no rows")
    train, evaluation = parts if len(parts) == 2 else _split(parts[0], source.eval_fraction, seed)
    return Data(train, evaluation, form, streams, columns)


def _hub_streams(found: Found, scratch: Path) -> list[Stream]:
    """Return a stream for each split."""
    source, name = found.source, str(found.source.name)
    splits = [split for split in (source.split, source.eval_split) if split]
    folder = hub.cached_snapshot("dataset", name, str(found.commit)) if hub.is_offline() else None
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
        raise hub_error(error, "dataset", name, source.revision or "main") from error
    limits = [source.max_samples, None]
    return [
        HubStream(f"{name}, split {split}", part, limit)
        for split, part, limit in zip(splits, parts, limits, strict=False)
    ]


def _files(source: DatasetSource, inputs: Inputs) -> list[Path]:
    if source.split != "train":
        raise HoneError(
            INVALID_SPEC,
            f"spec.dataset.split is {source.split}, and files are all train",
            remedy="Remove it, and name the split's own files in path.",
        )
    if source.config_map:
        field, paths = "spec.dataset.configMap.key", [inputs.config_map_file(source.config_map)]
    elif source.claim:
        field = "spec.dataset.claim.path"
        paths = _expand(inputs.claim_path(source.claim, "spec.dataset.claim", DATASET_NOT_FOUND))
    else:
        raise HoneError(
            INVALID_SPEC, "spec.dataset names no dataset", remedy="Set exactly one of name, configMap, claim."
        )
    if not paths:
        raise HoneError(DATASET_NOT_FOUND, f"{field} is {source.claim and source.claim.path!r}, and nothing is there")
    unknown = [path.name for path in paths if path.suffix.lower() not in rows.READERS]
    if unknown:
        raise HoneError(
            DATASET_INVALID,
            f"{field} names {unknown[0]}, whose ending is none of {', '.join(rows.READERS)}",
            remedy="Rename or convert the file, or name the files with a glob such as data/*.jsonl.",
        )
    return paths


def _expand(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if path.is_dir():
        return sorted(found for found in path.rglob("*") if found.is_file() and found.suffix.lower() in rows.READERS)
    if any(character in str(path) for character in "*?["):
        root = Path(path.anchor)
        return sorted(found for found in root.glob(str(path.relative_to(root))) if found.is_file())
    return []


def _dataset(stream: Stream, columns: dict[str, str], folder: Path) -> Dataset:
    def shaped() -> Iterator[dict[str, Any]]:
        for where, row in stream():
            yield formats.shape(where, row, columns)

    with writing(folder):
        return Dataset.from_generator(shaped, cache_dir=str(folder), fingerprint=folder.name)


def _split(dataset: Dataset, fraction: float | None, seed: int) -> tuple[Dataset, Dataset | None]:
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


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
