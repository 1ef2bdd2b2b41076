"""The dataset: found, read, shaped into its format, cut, split, and fingerprinted."""

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset
from hone_api.finetunejob import DatasetSource
from hone_api.reasons import DATASET_EMPTY, DATASET_INVALID, DATASET_NOT_FOUND, INVALID_SPEC, HoneError

from hone_trainer import formats, hub, rows
from hone_trainer.errors import hub_error
from hone_trainer.manifest import Inputs


@dataclass(frozen=True)
class Data:
    """Rows to train on and, with evalFraction, rows to evaluate on. `commit` is the hub dataset's."""

    train: Dataset
    evaluation: Dataset | None
    format: formats.Format
    fingerprint: str
    commit: str | None

    def sizes(self) -> str:
        """How many rows there are, in words."""
        held_out = f", {len(self.evaluation)} to evaluate on" if self.evaluation else ""
        return f"{len(self.train)} to train on{held_out}"

    def rows(self) -> Iterator[dict[str, Any]]:
        """Every row, those to train on first."""
        for part in filter(None, (self.train, self.evaluation)):
            yield from part

    @property
    def conversational(self) -> bool:
        """Whether rows hold messages, which the chat template turns into text."""
        return not isinstance(self.train[0][formats.COLUMNS[self.format][0]], str)


def load(source: DatasetSource, inputs: Inputs, seed: int, pinned: str | None) -> Data:
    """Load what spec.dataset says; `pinned` is the commit that an earlier start of this run resolved.

    Raises HoneError DatasetNotFound, DatasetColumnMissing, DatasetInvalid, DatasetEmpty, HubUnauthorized,
    HubUnreachable, InvalidSpec.
    """
    commit: str | None = None
    if source.name:
        commit, found = _from_hub(source, pinned)
        identity: Any = {"name": source.name, "commit": commit, "config": source.config, "split": source.split}
        stream: Callable[[], Iterable[rows.Row]] = lambda: _numbered(source, found)  # noqa: E731
        columns = set(found.column_names)
        if not len(found):
            raise HoneError(DATASET_EMPTY, f"spec.dataset.split is {source.split}, which has no rows")
    else:
        paths = _files(source, inputs)
        identity = [[path.name, _sha256(path)] for path in paths]
        stream = lambda: rows.read(paths)  # noqa: E731
        first = next(iter(stream()), None)
        if first is None:
            raise HoneError(DATASET_EMPTY, f"{', '.join(path.name for path in paths)} has no rows")
        columns = set(first[1])
    form, own = formats.judge(source.format, {str(column): own for column, own in source.columns.items()}, columns)
    fingerprint = _fingerprint({"source": identity, "columns": own, "maxSamples": source.max_samples})
    train = _dataset(stream, own, source.max_samples, fingerprint)
    train, evaluation = _split(train, source.eval_fraction, seed)
    return Data(train, evaluation, form, fingerprint, commit)


def _from_hub(source: DatasetSource, pinned: str | None) -> tuple[str, Dataset]:
    name, revision = str(source.name), pinned or source.revision or "main"
    commit = hub.resolve("dataset", name, revision)
    folder = hub.cached_snapshot("dataset", name, commit) if hub.is_offline() else None
    try:
        if folder:
            return commit, load_dataset(str(folder), source.config, split=source.split)
        return commit, load_dataset(name, source.config, revision=commit, split=source.split)
    except ValueError as error:  # what datasets raises for a config or split that is not there
        field, value = ("split", source.split) if "split" in str(error) else ("config", source.config)
        raise HoneError(
            DATASET_NOT_FOUND, f"spec.dataset.{field} is {value}, and {name} says: {' '.join(str(error).split())}"
        ) from error
    except Exception as error:
        raise hub_error(error, "dataset", name, revision) from error


def _numbered(source: DatasetSource, dataset: Dataset) -> Iterator[rows.Row]:
    for number, row in enumerate(dataset, start=1):
        yield f"{source.name}, split {source.split}, row {number}", row


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


def _dataset(stream: Callable[[], Iterable[rows.Row]], own: dict[str, str], limit: int | None, key: str) -> Dataset:
    def shaped() -> Iterator[dict[str, Any]]:
        for where, row in itertools.islice(stream(), limit):
            yield formats.shape(where, row, own)

    cache_key = hashlib.sha256(f"{key} {version('hone')}".encode()).hexdigest()[:16]
    return Dataset.from_generator(shaped, fingerprint=cache_key)


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


def _fingerprint(identity: dict[str, Any]) -> str:
    return "sha256:" + hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
