"""Write a tar stream of requested files to partial files, and stop where the stream was cut. No network."""

import os
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hone_api.reasons import ARTIFACT_CORRUPT, HoneError

# tarfile drops an incomplete piece where a stream is cut.
PIECE_BYTES = 2**16
# Of a file that no manifest lists, such as manifest.json itself and the report.
LARGEST_UNLISTED_BYTES = 64 * 2**20

Advance = Callable[[str, int], None]


class Readable(Protocol):
    """A stream of bytes; an empty answer is its end."""

    def read(self, size: int, /) -> bytes: ...


class Cut(Exception):
    """The stream ended in the middle, or the way to its source is broken. What was received is on disk."""


@dataclass(frozen=True)
class Request:
    """A requested file: where its bytes are appended, how many are there, and the size in the end.

    `size` None: it is not known.
    """

    partial: Path
    offset: int
    size: int | None


def receive_files(stream: Readable, wanted: Mapping[str, Request], advance: Advance) -> None:
    """Append the files of a tar stream to their partial files. `advance` gets path and number of written bytes.

    Raises Cut, and HoneError ArtifactCorrupt for a file that was not requested or has another size.
    """
    left = dict(wanted)
    try:
        with tarfile.open(fileobj=stream, mode="r|") as archive:  # type: ignore[call-overload]
            for member in archive:
                request = left.pop(member.name, None)
                if request is None or not member.isreg():
                    raise HoneError(ARTIFACT_CORRUPT, f"The pod sent {member.name!r}, which was not requested")
                if request.size is not None and member.size != request.size - request.offset:
                    found = request.offset + member.size
                    message = f"{member.name} has {found} bytes on the claim, the manifest lists {request.size}"
                    raise HoneError(ARTIFACT_CORRUPT, message)
                if request.size is None and member.size > LARGEST_UNLISTED_BYTES:
                    raise HoneError(ARTIFACT_CORRUPT, f"{member.name} has {member.size} bytes on the claim")
                _append_member(archive, member, request, advance)
    except (tarfile.TarError, EOFError) as error:
        raise Cut(str(error)) from error
    if left:
        raise Cut("the stream ended too early")


def _append_member(archive: tarfile.TarFile, member: tarfile.TarInfo, request: Request, advance: Advance) -> None:
    source = archive.extractfile(member)
    assert source is not None
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    with source, open(os.open(request.partial, flags, 0o644), "ab", buffering=0) as file:
        left = member.size
        while left:
            piece = source.read(min(PIECE_BYTES, left))
            if not piece:
                raise Cut(f"{member.name} was cut")
            view = memoryview(piece)
            while view:
                try:
                    view = view[file.write(view) :]
                except OSError as error:  # such as a full disk: the error of a write names no file
                    raise OSError(error.errno, error.strerror, str(request.partial)) from error
            left -= len(piece)
            advance(member.name, len(piece))
