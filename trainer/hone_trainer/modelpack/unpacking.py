"""Unpack layers that are archives into a folder, as a stream: memory does not depend on their size.

An archive comes from a registry and is not trusted: only files and folders below the target are written, never over
another file, and links, devices and owners are refused or ignored.
"""

import os
import shutil
import tarfile
import zlib
from pathlib import Path

from hone_trainer.modelpack.artifact import Packing, UnreadableArtifactError

_BLOCK_BYTES = 1024**2


def unpack(archive: Path, packing: Packing, folder: Path) -> None:
    """Write the files of an archive below `folder`. Raises UnreadableArtifactError, OSError for a full disk."""
    try:
        with tarfile.open(archive, "r|gz" if packing == "tar+gzip" else "r|") as tar:
            for member in tar:
                if not member.isdir():
                    _write(tar, member, folder)
    except (tarfile.TarError, EOFError, zlib.error, UnicodeError) as error:
        raise UnreadableArtifactError(f"has a layer that is no {packing} archive: {error}") from error


def _write(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    name = member.name.removeprefix("./")
    parts = name.split("/")
    if not name.isprintable() or "\\" in name or any(part in ("", ".", "..") for part in parts):
        raise UnreadableArtifactError(f"has the file {name!r} in an archive, which can't be a file below a folder")
    if not member.isreg():
        raise UnreadableArtifactError(f"has {name!r} in an archive, which is a link or a device, and no file")
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
        shutil.copyfileobj(content, file, _BLOCK_BYTES)
        file.flush()
        os.fsync(descriptor)
