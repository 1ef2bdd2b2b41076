"""The folder that `hone pull` fills: which files are missing, which may be written, and when a file is complete.

A file is received as `.NAME.<begin of its sha256>.partial` next to its place, proved by its digest, and then renamed.
So an interrupted pull continues, and a file of another artifact is never continued. manifest.json is written last.
"""

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from hone_api.artifacts.manifest import (
    ArtifactManifest,
    FileDigest,
    compute_files_digest,
    describe_file,
    list_folders,
    open_regular,
    read_content,
)
from hone_api.io.durable_files import flush_to_disk
from hone_api.layout import MANIFEST
from hone_api.reasons import ARTIFACT_CORRUPT, HoneError

from hone import notices
from hone.errors import ClientError

REPORT_FILE = "report/report.html"
# Of the name in a partial file's name, which may have 255 bytes.
LONGEST_NAME_BYTES = 200
OTHER_FOLDER = "Choose another DIR, or move it away."


@dataclass(frozen=True)
class Sizes:
    """Bytes of the artifact, and how many of them are here already."""

    total: int
    here: int


def check_names(manifest: ArtifactManifest) -> None:
    """Raise HoneError ArtifactCorrupt unless all files are plain paths in the artifact's folders, with its digest."""
    folders = list_folders(manifest.kind)
    for path in manifest.files:
        parts = path.split("/")
        is_plain = path.isprintable() and "\\" not in path and not {"", ".", ".."} & set(parts)
        if not is_plain or len(parts) < 2 or parts[0] not in folders:
            message = f"{MANIFEST} lists the file {path!r}, which is no plain path in {' or '.join(folders)}"
            raise HoneError(ARTIFACT_CORRUPT, message)
    for path in manifest.files:
        if any(f"{parent}" in manifest.files for parent in Path(path).parents):
            raise HoneError(ARTIFACT_CORRUPT, f"{MANIFEST} lists {path!r} in a folder that it lists as a file")
    if compute_files_digest(manifest.files) != manifest.digest:
        message = f"{MANIFEST} has the digest {manifest.digest}, and its list of files has another"
        raise HoneError(ARTIFACT_CORRUPT, message)


def make_partial_path(root: Path, path: str, digest: FileDigest) -> Path:
    """Return where a file is received."""
    place = root / path
    begin = place.name.encode()[:LONGEST_NAME_BYTES].decode(errors="ignore")
    return place.with_name(f".{begin}.{digest.sha256[:16]}.partial")


def find_missing(root: Path, manifest: ArtifactManifest) -> list[str]:
    """Return the files that are not complete yet, in the manifest's order, and create their folders.

    Raises ClientError for anything that was not pulled from this artifact: nothing of it is replaced or removed.
    """
    if os.path.lexists(root / MANIFEST) and not _has_manifest(root, manifest):
        raise ClientError(f"{root / MANIFEST} is of another artifact", OTHER_FOLDER)
    _refuse_foreign(root, manifest)
    missing = []
    for path, expected in manifest.files.items():
        place = root / path
        if not os.path.lexists(place):
            place.parent.mkdir(parents=True, exist_ok=True)
            missing.append(path)
        elif not is_complete(place, expected):
            raise ClientError(f"{place} exists, and its content is not that of the artifact", OTHER_FOLDER)
    return missing


def is_complete(place: Path, expected: FileDigest) -> bool:
    """Return whether a regular file has the size and the digest of the manifest."""
    try:
        file = open_regular(place)
    except (OSError, ValueError):
        return False
    try:
        return os.fstat(file).st_size == expected.size and describe_file(file).sha256 == expected.sha256
    finally:
        os.close(file)


def count_received_bytes(partial: Path, expected: FileDigest) -> int:
    """Return how much of a file was received. A partial file that can't be continued is removed."""
    with suppress(FileNotFoundError):
        found = os.lstat(partial)
        if stat.S_ISREG(found.st_mode) and found.st_size <= expected.size:
            return found.st_size
        os.unlink(partial)
    return 0


def finish_file(root: Path, path: str, expected: FileDigest) -> None:
    """Prove a received file and put it in its place. Raises HoneError: ArtifactCorrupt, or for a foreign file."""
    partial = make_partial_path(root, path, expected)
    if not is_complete(partial, expected):
        partial.unlink()
        message = f"{path} arrived with another sha256 than manifest.json lists, and was removed"
        raise HoneError(ARTIFACT_CORRUPT, message, remedy="Pull again; if it stays so, run the FineTuneJob again.")
    flush_to_disk(partial)
    if os.path.lexists(root / path):
        raise ClientError(f"{root / path} appeared in the meantime", OTHER_FOLDER)
    partial.rename(root / path)


@contextmanager
def lock_folder(root: Path) -> Iterator[None]:
    """Create the folder, and keep other pulls out of it. Raises ClientError when another one runs.

    On NFS, a folder can't be locked: then a hint says so.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise ClientError(f"DIR {root} is a file", "Name a folder.") from None
    descriptor = os.open(root, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            found = f"another `hone pull` writes into {root}"
            raise ClientError(found, "Wait for its end, or choose another DIR.") from None
        except OSError:
            notices.report_hint(f"{root} can't be locked: start no second `hone pull` into it.")
        yield
    finally:
        os.close(descriptor)


def _has_manifest(root: Path, manifest: ArtifactManifest) -> bool:
    try:
        return ArtifactManifest.model_validate_json(read_content(root / MANIFEST)).digest == manifest.digest
    except (OSError, ValueError):
        return False


def _refuse_foreign(root: Path, manifest: ArtifactManifest) -> None:
    """Raise ClientError for a file or link in the artifact's folders that a loader might read instead."""
    known = set(manifest.files)
    known |= {str(make_partial_path(Path(), path, digest)) for path, digest in manifest.files.items()}
    parents = {str(parent) for path in manifest.files for parent in Path(path).parents}
    waiting = list_folders(manifest.kind)
    while waiting:
        path = waiting.pop()
        try:
            mode = os.lstat(root / path).st_mode
        except FileNotFoundError:
            continue
        if stat.S_ISDIR(mode) and path in parents:
            waiting += [f"{path}/{name}" for name in os.listdir(root / path)]
        elif not stat.S_ISREG(mode) or path not in known:
            raise ClientError(f"{root / path} is not of this artifact", OTHER_FOLDER)
