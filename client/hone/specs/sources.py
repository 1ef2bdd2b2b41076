"""Turn the `model` and `dataset` that a caller names into sources of the spec, and what has to go with them."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from hone.errors import InvalidSpecError

Fields = Mapping[str, Any]
ModelSource = str | os.PathLike[str] | Fields | BaseModel
DatasetSource = str | os.PathLike[str] | Fields | BaseModel | Iterable[Fields]

# The claims that folders of this machine stand for.
LOCAL_MODEL, LOCAL_DATASET = "local-model", "local-dataset"
ROWS_KEY, DIGITS = "train.jsonl", 8
# What a ConfigMap can hold, with room for its names.
LARGEST_ROWS_BYTES = 2**20 - 2**14


@dataclass(frozen=True)
class Source:
    """A source on the wire. `claims`: folders here that stand for claims. `rows`: the content of a ConfigMap."""

    fields: Fields | BaseModel
    claims: Mapping[str, Path] = field(default_factory=dict)
    rows: str | None = None


def describe_model(value: ModelSource, *, is_local: bool) -> Source:
    """Return the source of a model: a name on the hub, a URI, a folder on this machine, or the fields of spec.model.

    Raises InvalidSpecError.
    """
    if isinstance(value, str) and not _is_path(value):
        return Source({"uri": value} if "://" in value else {"name": value})
    if isinstance(value, str | os.PathLike):
        folder = _find_path("model", value)
        if not is_local:
            raise InvalidSpecError(
                f"model {value} is a folder on this machine, which the cluster can't read",
                "Copy it to a claim and give model={'claim': {'name': …, 'path': …}}, or use Client(local=True).",
            )
        return Source({"claim": {"name": LOCAL_MODEL, "path": folder.name}}, {LOCAL_MODEL: folder.parent})
    return Source(value)


def describe_dataset(value: DatasetSource, name: str, *, is_local: bool) -> Source:
    """Return the source of a dataset; rows go into a ConfigMap that is named after `name`. Raises InvalidSpecError."""
    if isinstance(value, str) and not _is_path(value):
        return Source({"uri": value} if "://" in value else {"name": value})
    if isinstance(value, str | os.PathLike):
        place = _find_path("dataset", value)
        if is_local:
            return Source({"claim": {"name": LOCAL_DATASET, "path": place.name}}, {LOCAL_DATASET: place.parent})
        raise InvalidSpecError(
            f"dataset {value} is on this machine, which the cluster can't read",
            "Copy it to a claim or a bucket, or give its rows as a list of dictionaries.",
        )
    if isinstance(value, Mapping | BaseModel):
        return Source(value)
    rows = "".join(map(_format_row, value))
    if not rows:
        raise InvalidSpecError("dataset has no rows", "Give at least one row, as a dictionary.")
    if (size := len(rows.encode())) > LARGEST_ROWS_BYTES:
        raise InvalidSpecError(
            f"dataset has {size} bytes of rows, and the ConfigMap that they become holds {LARGEST_ROWS_BYTES}",
            "Write them to a file, and give its path; for a cluster, copy it to a claim or a bucket.",
        )
    digest = hashlib.sha256(rows.encode()).hexdigest()[:DIGITS]  # other rows are another dataset
    return Source({"configMap": {"name": f"{name}-{digest}", "key": ROWS_KEY}}, rows=rows)


def _is_path(text: str) -> bool:
    return text.startswith((".", "/", "~"))


def _find_path(field_name: str, value: str | os.PathLike[str]) -> Path:
    found = Path(value).expanduser().absolute()
    if not found.exists():
        raise InvalidSpecError(
            f"{field_name} {value} does not exist on this machine",
            "Correct the path, or give the name of a repository on the hub.",
        )
    return found


def _format_row(row: object) -> str:
    if not isinstance(row, Mapping):
        raise InvalidSpecError(
            f"dataset has a row that is {row!r:.60}", "Give each row as a dictionary, such as {'text': …}."
        )
    try:
        return json.dumps(dict(row), ensure_ascii=False, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise InvalidSpecError(
            f"dataset has a row that is not JSON: {error}", "Give rows of texts, numbers, lists and dictionaries."
        ) from None
