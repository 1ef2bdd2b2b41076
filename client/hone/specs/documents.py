"""Read the user's files: their objects, each one's name, and its faults."""

from argparse import ArgumentTypeError
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hone_api.io.command_line import parse_pair
from hone_api.reasons import INVALID_SPEC, HoneError

Document = dict[str, Any]


def load_file(path: Path) -> list[Document]:
    """Return every object in a file. Raises HoneError InvalidSpec when it can't be read."""
    from hone_api.schema.manifests import load_documents

    return load_documents(path)


def make_title(document: Document) -> str:
    """Return `Kind/name`, as far as the document has them."""
    metadata = document.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    kind = document.get("kind")
    kind = kind if isinstance(kind, str) and kind else "object without kind"
    return f"{kind}/{name if isinstance(name, str | int | float) else '(no name)'}"


def find_missing_names(document: Document) -> list[str]:
    """Return why the kind of the object is unknown: apiVersion or kind is missing, or not a string."""
    found = []
    for field in ("apiVersion", "kind"):
        value = document.get(field)
        if not isinstance(value, str) or not value:
            found.append(f"{field}: Required value: a string" + (f", and it is {value!r:.60}" if value else ""))
    return found


def is_of_hone(document: Document) -> bool:
    """Return whether it is an object of Hone's API group."""
    return str(document.get("apiVersion")).partition("/")[0] == "hone.dev" or document.get("kind") in KINDS


KINDS = ("FineTuneJob", "InferenceService")


def find_problems(document: Document) -> list[str]:
    """Return why `kubectl apply` would refuse the document, one sentence each."""
    from hone_api.schema.validation import validate_object

    return list(validate_object(document))


def load_only(kind: str, path: Path) -> Document:
    """Return the file's one valid object of a kind. Raises HoneError InvalidSpec, naming what was found instead."""
    documents = load_file(path)
    found = [document for document in documents if document.get("kind") == kind]
    if len(found) != 1:
        titles = ", ".join(make_title(document) for document in documents)
        raise HoneError(
            INVALID_SPEC,
            f"{path} holds {len(found) or 'no'} {kind}{'s' if len(found) > 1 else ''}: {titles}",
            remedy=f"Give a file with exactly one {kind}.",
        )
    wrong = find_problems(found[0])
    if wrong:
        raise HoneError(INVALID_SPEC, f"{path}: {make_title(found[0])}: {'; '.join(wrong)}")
    return found[0]


def parse_folders(option: str, values: Iterable[str]) -> dict[str, str]:
    """Return the folder of each name that a repeated option NAME=DIR gives. Raises HoneError InvalidSpec."""
    found = {}
    for value in values:
        try:
            name, folder = parse_pair(value)
        except ArgumentTypeError:
            message = f"{option} {value} is not NAME=DIR"
            raise HoneError(INVALID_SPEC, message, remedy=f"Write {option} NAME=DIR.") from None
        found[name] = folder
    return found
