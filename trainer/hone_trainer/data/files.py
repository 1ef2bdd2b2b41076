"""The files that spec.dataset names in a ConfigMap or on a claim.

A folder follows the rules of load_dataset in `datasets`, so that a downloaded dataset means the same here: hidden files
are left out, and so are files whose names are those of another split. Unlike there, a folder whose files have several
endings is refused, and every file that is left out is reported.
"""

import fnmatch
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from hone_api.finetunejobs.sources import DatasetSource
from hone_api.io.terminal import make_encodable
from hone_api.reasons import DATASET_INVALID, DATASET_NOT_FOUND, INVALID_SPEC, HoneError

from hone_trainer.data.readers import row_files
from hone_trainer.inputs.disguised_files import refuse_disguised
from hone_trainer.inputs.manifest import JobInputs

# Prefixes of the names of files that describe a dataset and do not belong to its rows.
_DOCUMENTS = re.compile(
    r"(readme|licen[cs]e|copying|notice|authors|changelog|citation|requirements|dataset_infos?|dataset_dict|config)\b"
    r".*\.(txt|json)$",
    re.IGNORECASE,
)

_REPORTED_NAMES = 20
_HIDDEN = (".", "__")
_WILDCARDS = re.compile(r"[*?[]")


def _split_pattern(*words: str) -> re.Pattern[str]:
    """Match a path that contains the name of a split on its own, between separators."""
    return re.compile(rf"(^|[-._ 0-9/])({'|'.join(words)})([-._ 0-9/]|$)", re.IGNORECASE)


_TRAIN = _split_pattern("train", "training")
_OTHER_SPLITS = _split_pattern("validation", "valid", "dev", "val", "test", "testing", "eval", "evaluation")


@dataclass(frozen=True)
class DataFiles:
    """Files of rows in the order in which they are read, each with its name in messages; `left_out` are names."""

    files: list[tuple[Path, str]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    @classmethod
    def from_paths(cls, files: list[tuple[Path, str]], left_out: list[str]) -> "DataFiles":
        """Return the files, with printable names for messages and reports, even if the files' own names are arbitrary
        bytes.
        """
        return cls([(path, make_encodable(name)) for path, name in files], [make_encodable(name) for name in left_out])

    def summarize(self) -> str:
        """Return how many files are read, the first names, and which files next to them are not."""
        count = f"{len(self.files)} file{'s' if len(self.files) != 1 else ''}"
        read = f"dataset of {count}: {list_names([name for _, name in self.files])}"
        return f"{read}; left out: {list_names(self.left_out)}" if self.left_out else read

    def report(self) -> dict[str, Any]:
        """Return the fields of the dataset's report that name the files that were read."""
        names = [name for _, name in self.files]
        return {
            "files": names[:_REPORTED_NAMES],
            "file_count": len(names),
            "left_out_files": self.left_out[:_REPORTED_NAMES],
        }


def find_files(source: DatasetSource, inputs: JobInputs) -> DataFiles:
    """Return the files that spec.dataset means. Raises HoneError DatasetNotFound, DatasetInvalid, InvalidSpec."""
    found = _find_files(source, inputs)
    for path, name in found.files:
        refuse_disguised(path, name)
    return found


def find_downloaded_files(folder: Path, uri: str) -> DataFiles:
    """Return the files of rows in the folder of a download. Raises HoneError DatasetNotFound, DatasetInvalid."""
    where = f"spec.dataset.uri is {uri}"
    alone = folder / PurePosixPath(unquote(uri)).name
    found = DataFiles.from_paths([(alone, alone.name)], []) if alone.is_file() else _choose(folder, where)
    row_files.refuse_unknown_endings("spec.dataset.uri", [path for path, _ in found.files])
    for path, name in found.files:
        refuse_disguised(path, name)
    return found


def _find_files(source: DatasetSource, inputs: JobInputs) -> DataFiles:
    if source.split != "train":
        raise HoneError(
            INVALID_SPEC,
            f"spec.dataset.split is {source.split}, and files are all train",
            remedy="Remove it, and name the split's own files in path.",
        )
    if source.config_map:
        path = inputs.find_config_map_file(source.config_map)
        row_files.refuse_unknown_endings("spec.dataset.configMap.key", [path])
        return DataFiles.from_paths([(path, path.name)], [])
    if source.claim is None:
        raise HoneError(
            INVALID_SPEC, "spec.dataset names no dataset", remedy="Set exactly one of name, configMap, claim, uri."
        )
    path = inputs.find_claim_path(source.claim, "spec.dataset.claim", DATASET_NOT_FOUND)
    try:
        found = _find(path, inputs.claims[source.claim.name], str(source.claim.path or ""))
    except OSError as error:
        raise HoneError(DATASET_NOT_FOUND, f"{error.filename} can't be read: {error.strerror}") from None
    row_files.refuse_unknown_endings("spec.dataset.claim.path", [path for path, _ in found.files])
    return found


def _find(path: Path, root: Path, written: str) -> DataFiles:
    where = f"spec.dataset.claim.path is {written!r}"
    if path.is_file():
        return DataFiles.from_paths([(path, path.name)], [])
    if path.is_dir():
        return _choose(path, where)
    if os.path.lexists(path):
        _refuse_what_is_no_file(path, f"{where}, which")
    matched = _find_matching_files(root, written, where) if _WILDCARDS.search(written) else []
    if not matched:
        raise HoneError(DATASET_NOT_FOUND, f"{where}, and nothing is there")
    return DataFiles.from_paths(_name_paths(matched), [])


def _match(root: Path, parts: tuple[str, ...]) -> Iterator[Path]:
    """Yield what a pattern matches below a folder: each folder with files of its own, links to folders only by name.

    Only `parts` are patterns, not the folder. A part matches a hidden name only if it begins with a dot itself.
    """
    if not parts:
        yield root
        return
    part, rest = parts[0], parts[1:]
    if not root.is_dir():
        return
    if not _WILDCARDS.search(part):
        if os.path.lexists(root / part):
            yield from _match(root / part, rest)
        return
    if part == "**":
        yield from _match(root, rest)
    for name in sorted(os.listdir(root)):
        if _is_hidden(Path(name)) and not part.startswith(_HIDDEN):
            continue
        if part != "**":
            if fnmatch.fnmatchcase(name, part):
                yield from _match(root / name, rest)
        elif (root / name).is_dir() and not (root / name).is_symlink():
            yield from _match(root / name, parts)


def _find_matching_files(root: Path, written: str, where: str) -> list[Path]:
    """Return the files below a claim's folder that a pattern matches. Raises HoneError for what can't be read."""
    parts = PurePosixPath(written).parts
    if any("**" in part and part != "**" for part in parts):
        raise HoneError(
            INVALID_SPEC,
            f"{where}, where ** is only a part of a name",
            remedy="** stands for any number of folders: write it between slashes, such as data/**/*.jsonl.",
        )
    matched = sorted({path for path in _match(root, parts) if not path.is_dir()})
    for path in matched:
        _refuse_what_is_no_file(path, f"{where}, and {path.relative_to(root).as_posix()}")
    return matched


def _refuse_what_is_no_file(path: Path, subject: str) -> None:
    """Raise HoneError DatasetNotFound for a link that leads nowhere, and for a pipe, a socket or a device."""
    if not path.is_file():
        what = "a link to a file that does not exist" if path.is_symlink() else "neither a file nor a folder"
        raise HoneError(DATASET_NOT_FOUND, f"{subject} is {what}", remedy="Remove it, or name the files to train on.")


def _name_paths(paths: list[Path]) -> list[tuple[Path, str]]:
    """Return the paths with their names, which are unique: below the folder that holds them all."""
    folder = Path(os.path.commonpath([path.parent for path in paths]))
    return [(path, path.relative_to(folder).as_posix()) for path in paths]


def _choose(folder: Path, where: str) -> DataFiles:
    """Return the files of rows in a folder and in those below it."""
    found = {path.relative_to(folder).as_posix(): path for path in sorted(_walk(folder))}
    readable = {
        name: path
        for name, path in found.items()
        if path.suffix.lower() in row_files.READERS and not _is_hidden(Path(name)) and not _DOCUMENTS.match(path.name)
    }
    chosen = _choose_split(set(readable))
    if not chosen:
        others = f" but files of other splits: {list_names(list(readable))}" if readable else ""
        raise HoneError(
            DATASET_NOT_FOUND,
            f"{where}, a folder that has no file to train on{others}",
            remedy=f"Give a file that ends with one of {', '.join(row_files.READERS)}, or name the file itself in "
            "path.",
        )
    endings = sorted({readable[name].suffix.lower() for name in chosen})
    if len(endings) > 1:
        examples = [next(name for name in sorted(chosen) if name.lower().endswith(ending)) for ending in endings]
        raise HoneError(
            DATASET_INVALID,
            f"{where}, a folder whose files have several endings: {list_names(examples)}",
            remedy=f"Name the files to train on with a glob, such as {folder.name}/*{endings[0]}.",
        )
    for name in sorted(chosen):
        _refuse_what_is_no_file(readable[name], f"{where}, and its {name}")
    left_out = [name for name in found if name not in chosen and not _is_hidden(Path(name))]
    return DataFiles.from_paths([(readable[name], name) for name in readable if name in chosen], left_out)


def _choose_split(names: set[str]) -> set[str]:
    """Return the names that are of the split to train on: by their folders, else by what the files are called."""
    for part in (os.path.dirname, os.path.basename):
        train = {name for name in names if _TRAIN.search(part(name))}
        if train:
            return train
        names = {name for name in names if not _OTHER_SPLITS.search(part(name))}
    return names


def list_names(names: list[str], most: int = 5) -> str:
    """Return the first names, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def _walk(folder: Path) -> Iterator[Path]:
    """Yield all entries below a folder except folders. A linked folder is read once."""
    seen: set[str] = set()

    def raise_error(error: OSError) -> None:
        raise error

    for place, folders, names in os.walk(folder, onerror=raise_error, followlinks=True):
        folders[:] = [name for name in sorted(folders) if not name.startswith(_HIDDEN)]
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        yield from (Path(place, name) for name in names)


def _is_hidden(name: Path) -> bool:
    return any(part.startswith(_HIDDEN) for part in name.parts)
