"""What a store holds, and how a download can fail.

A store (`s3`, `https`, `oci_store`) lists a source as `RemoteObject`s and reads ranges of them; `download` writes
these to files.
"""

import hashlib
import json
import os
from base64 import b64decode
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from hone_api.reasons import HoneError

from hone_trainer.modelpack.artifact import Packing
from hone_trainer.remote.locations import Location

WINDOWS_SEPARATOR = "\\"


@dataclass(frozen=True)
class RemoteObject:
    """One object. `name` is its path in the downloaded folder, `key` its key in the bucket or its URL.

    `validator` changes with the content (an ETag, else the time of the last change); it is empty where the server
    gives none, and the object is then downloaded from its start each time. An archive is unpacked once it is there;
    `is_named`: its name is that of the file in it.
    """

    name: str
    key: str
    size: int
    validator: str
    has_ranges: bool = True
    packing: Packing = "file"
    is_named: bool = True


@dataclass(frozen=True)
class Checksums:
    """The digests that a store knows of an object, in hex."""

    md5: str | None = None
    sha256: str | None = None


class TransientError(Exception):
    """A failure that may be over in a moment: a cut connection, a busy server. `wait_seconds` is what it asked for."""

    def __init__(self, message: str, wait_seconds: float = 0.0) -> None:
        super().__init__(message)
        self.wait_seconds = wait_seconds


class ChangedError(Exception):
    """An object is no longer the one that was listed."""


class Store(Protocol):
    """A place that holds objects. All methods raise HoneError, TransientError; `read` also ChangedError.

    What the body of a `with` statement for `read` raises, such as OSError for a full disk, passes unchanged.
    """

    def list_objects(self) -> list[RemoteObject]:
        """Return the objects of the source; an empty list when nothing is there."""
        ...

    def read_checksums(self, wanted: RemoteObject) -> Checksums:
        """Return the digests of an object's content, as far as the store knows them."""
        ...

    def read(self, wanted: RemoteObject, start: int, end: int) -> AbstractContextManager[Iterator[bytes]]:
        """Open the bytes from `start` to before `end`, in small blocks. There may be fewer when the connection ends."""
        ...


def compute_revision(location: Location, objects: list[RemoteObject]) -> str:
    """Return the name of the objects' content: it changes when one of them does."""
    listed = sorted((found.name, found.size, found.validator or os.urandom(16).hex()) for found in objects)
    identity = json.dumps([location.uri, location.endpoint, listed])
    return hashlib.sha256(identity.encode()).hexdigest()[:40]


def decode_sha256(text: str) -> str | None:
    """Return a digest of a header, which is in base64, in hex; None for anything else."""
    try:
        found = b64decode(text, validate=True)
    except ValueError:
        return None
    return found.hex() if len(found) == hashlib.sha256().digest_size else None


def refuse_unusable_names(location: Location, objects: list[RemoteObject]) -> None:
    """Raise HoneError for keys that would leave the folder, and for those that become the same file.

    Case is ignored, since a volume may ignore it.
    """
    folders: dict[str, str] = {}
    files: dict[str, str] = {}
    for name in sorted(found.name for found in objects):
        parts = name.split("/")
        if any(part in ("", ".", "..") for part in parts) or WINDOWS_SEPARATOR in name or not name.isprintable():
            raise HoneError(
                location.invalid,
                f"{location.where}, and its object {name!r} can't be a file below a folder",
                remedy="Rename it: no '..', '.', '//', '\\' or control characters, and no '/' at its beginning.",
            )
        try:
            is_too_long = any(len(part.encode()) > 255 for part in parts)
        except UnicodeEncodeError:
            is_too_long = True
        if is_too_long:
            raise HoneError(
                location.invalid,
                f"{location.where}, and its object {name!r:.300} has a name that no file can have",
                remedy="Rename it: each part between slashes is UTF-8 of at most 255 bytes.",
            )
        parents = ["/".join(parts[:depth]) for depth in range(1, len(parts))]
        other = files.get(name.casefold()) or folders.get(name.casefold())
        other = other or next((files[parent.casefold()] for parent in parents if parent.casefold() in files), None)
        if other:
            raise HoneError(
                location.invalid,
                f"{location.where}, and its objects {other!r} and {name!r} would be the same file",
                remedy="Rename one of them: names differ by more than upper and lower case, and a file is no folder.",
            )
        files[name.casefold()] = name
        folders |= {parent.casefold(): name for parent in parents}
