"""Unpack layers that are archives into a folder, as a stream: memory does not depend on their size.

An archive comes from a registry and is not trusted: only files and folders below the target are written, never over
another file, and links, devices and owners are refused or ignored. A small archive can't fill a volume or the memory:
the size of its files, their number, and the bytes between them are bounded.
"""

import errno
import gzip
import os
import shutil
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
from hone_api.byte_sizes import format_bytes

from hone_trainer.modelpack.artifact import Packing, UnreadableArtifactError

_BLOCK_BYTES = 1024**2
# An archive may have files of this size, however small it is, and of this multiple of its own size. Rows of text
# become 5 to 50 times smaller, weights hardly at all; zeros become a thousand times smaller.
SMALLEST_LIMIT_BYTES = 2**30
LARGEST_RATIO = 200
MOST_FILES = 100_000
# What precedes a file: its header, a long name, attributes. tarfile reads that into memory.
_LARGEST_HEADER_BYTES = 2 * 1024**2


def unpack(archive: Path, packing: Packing, folder: Path) -> None:
    """Write the files of an archive below `folder`.

    Raises UnreadableArtifactError, OSError ENOSPC before it writes a file for which the volume has no room.
    """
    size = archive.stat().st_size
    limit = max(SMALLEST_LIMIT_BYTES, LARGEST_RATIO * size)
    left, count = limit, 0
    try:
        with (
            _open(archive, packing) as content,
            tarfile.open(fileobj=(stream := _BoundedStream(content.read)), mode="r|") as tar,  # type: ignore[call-overload]
        ):
            while member := tar.next():
                tar.members = []  # tarfile would keep them all
                count += 1
                left -= max(member.size, 0)
                if left < 0 or count > MOST_FILES:
                    what = f"{format_bytes(limit)} of files" if left < 0 else f"{MOST_FILES} files"
                    raise UnreadableArtifactError(f"has an archive of {format_bytes(size)} with more than {what}")
                stream.allow(member.size)
                if not member.isdir():
                    _write(tar, member, folder)
                stream.allow(0)
    except (tarfile.TarError, EOFError, zlib.error, OSError, UnicodeError) as error:
        if isinstance(error, OSError) and error.errno:  # of the file system, and not of a decompressor
            raise
        raise UnreadableArtifactError(f"has a layer that is no {packing} archive: {error}") from error


def _open(archive: Path, packing: Packing) -> Any:
    """Open an archive for reading what it holds, as a stream."""
    if packing == "tar+zstd":
        return pyarrow.input_stream(str(archive), compression="zstd")
    return gzip.open(archive) if packing == "tar+gzip" else archive.open("rb")


class _BoundedStream:
    """A stream that returns at most as many bytes as are allowed: a header may make tarfile read any number."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read
        self._left = 0
        self.allow(0)

    def allow(self, size: int) -> None:
        """Allow a file of this size, and the header of the next one."""
        self._left = size + _LARGEST_HEADER_BYTES

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes. Raises UnreadableArtifactError."""
        found = self._read(size)
        self._left -= len(found)
        if self._left < 0:
            limit = format_bytes(_LARGEST_HEADER_BYTES)
            raise UnreadableArtifactError(f"has an archive with more than {limit} that is not of its files")
        return found


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    name = member.name.removeprefix("./")
    parts = name.split("/")
    if not name.isprintable() or "\\" in name or any(part in ("", ".", "..") for part in parts):
        raise UnreadableArtifactError(f"has the file {name!r} in an archive, which can't be a file below a folder")
    if not member.isreg() or member.issparse():
        raise UnreadableArtifactError(f"has {name!r} in an archive, which is a link, a device or sparse, and no file")
    content = tar.extractfile(member)
    if content is None:
        raise UnreadableArtifactError(f"has {name!r} in an archive, which is no file")
    target = folder / name
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
    except (FileExistsError, NotADirectoryError):
        raise UnreadableArtifactError(f"has the file {name!r} twice") from None
    with content, os.fdopen(descriptor, "wb") as file:
        usage = shutil.disk_usage(target.parent)
        if usage.total and member.size > usage.free:  # some network file systems report nothing
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        shutil.copyfileobj(content, file, _BLOCK_BYTES)
        file.flush()
        os.fsync(descriptor)
