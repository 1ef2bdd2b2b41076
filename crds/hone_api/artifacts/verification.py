"""Verify that an artifact's files are exactly those of its manifest.

Loaders read any matching file in a folder: they prefer a `model.safetensors` to the shards that an index lists, and a
`chat_template.jinja` to the template in the tokenizer's configuration. So it is not enough that each file of the
manifest is right. The artifact's folders must hold only these files: no other file, no link, no device, and no listed
file may be outside of them. Each folder has a configuration and weights, or a loader would look for them in another
place: PEFT takes a folder without weights as the name of a repository on the hub. Other folders (checkpoints, logs, the
cache) are never loaded as the artifact.
"""

import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hone_api.artifacts.adapter_config import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from hone_api.artifacts.manifest import (
    CORRUPT_REMEDY,
    ArtifactManifest,
    FileDigest,
    compute_files_digest,
    describe_file,
    list_folders,
    open_regular,
)
from hone_api.layout import ADAPTER, MANIFEST
from hone_api.reasons import ARTIFACT_CORRUPT, HoneError

CONFIG = "config.json"
# A model's weights may be in several files; an adapter's are in one.
MODEL_WEIGHTS = (".safetensors", ".bin")


def verify(root: Path, manifest: ArtifactManifest, below: str = "") -> None:
    """Compare all folders of the artifact, or the one named `below`, with the manifest.

    Raises HoneError ArtifactCorrupt naming the first file that is missing, differs, or is not in the manifest, and when
    the manifest lists no configuration or no weights.
    """
    for path in manifest.files:
        if problem := _find_path_problem(path, manifest):
            found = f"{root / MANIFEST} lists the file {path!r}, which {problem}"
            raise HoneError(ARTIFACT_CORRUPT, found, remedy=CORRUPT_REMEDY)
    if compute_files_digest(manifest.files) != manifest.digest:
        found = f"{root / MANIFEST} has the digest {manifest.digest}, and its list of files has another"
        raise HoneError(ARTIFACT_CORRUPT, found, remedy=CORRUPT_REMEDY)
    if lacking := _find_lacking(manifest):
        found = f"{root / MANIFEST} is of kind {manifest.kind}, and lists no {lacking}"
        raise HoneError(ARTIFACT_CORRUPT, found, remedy=CORRUPT_REMEDY)
    folders = [folder for folder in list_folders(manifest.kind) if below in ("", folder)]
    listed = {path: digest for path, digest in manifest.files.items() if path.partition("/")[0] in folders}
    _refuse_unlisted(root, folders, listed)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for error in pool.map(lambda item: _find_difference(root / item[0], item[1]), listed.items()):
            if error:
                raise HoneError(ARTIFACT_CORRUPT, error)


def _find_path_problem(path: str, manifest: ArtifactManifest) -> str | None:
    """Return what is wrong with a path of the manifest; None: nothing."""
    parts = path.split("/")
    if not path.isprintable() or "\\" in path:  # a line break would split a line of the digest
        return "has a character that no file of an artifact has in its name"
    if any(part in ("", ".", "..") for part in parts):
        return "is not a plain path relative to the artifact"
    folders = list_folders(manifest.kind)
    if len(parts) < 2 or parts[0] not in folders:
        return f"is not in {' or '.join(f'{folder}/' for folder in folders)}"
    return None


def _find_lacking(manifest: ArtifactManifest) -> str | None:
    """Return a file that a folder of the artifact needs to be loaded, and that the manifest does not list."""
    for folder in list_folders(manifest.kind):
        config = ADAPTER_CONFIG if folder == ADAPTER else CONFIG
        if f"{folder}/{config}" not in manifest.files:
            return f"{folder}/{config}"
        listed = [path for path in manifest.files if path.count("/") == 1 and path.startswith(f"{folder}/")]
        if folder == ADAPTER and not any(f"{folder}/{name}" in listed for name in ADAPTER_WEIGHTS):
            return f"{folder}/{ADAPTER_WEIGHTS[0]}"
        if folder != ADAPTER and not any(path.endswith(MODEL_WEIGHTS) for path in listed):
            return f"weights in {folder}/"
    return None


def _refuse_unlisted(root: Path, folders: list[str], listed: dict[str, FileDigest]) -> None:
    parents = {str(parent) for path in listed for parent in Path(path).parents}
    for path, mode in _walk_folders(root, folders):
        if stat.S_ISDIR(mode):
            problem = None if path in parents else "a folder that holds no file of the manifest"
        elif stat.S_ISLNK(mode):
            problem = "a link, and an artifact has none"
        elif not stat.S_ISREG(mode):
            problem = "neither a file nor a folder"
        else:
            problem = None if path in listed else f"not listed in {MANIFEST}, and a loader might read it"
        if problem:
            remedy = "Remove it, or restore the artifact from where it came from."
            if stat.S_ISLNK(mode):
                remedy = "Copy the artifact with the files that the links lead to: cp -rL."
            raise HoneError(ARTIFACT_CORRUPT, f"{_format_path(root / path)} is {problem}", remedy=remedy)


def _walk_folders(root: Path, folders: list[str]) -> Iterator[tuple[str, int]]:
    """Yield every path at and below the folders, relative to the root, with its mode. Links are not followed."""
    waiting = list(folders)
    while waiting:
        path = waiting.pop()
        try:
            mode = os.lstat(root / path).st_mode
            yield path, mode
            if stat.S_ISDIR(mode):
                waiting += sorted((f"{path}/{name}" for name in os.listdir(root / path)), reverse=True)
        except FileNotFoundError:
            continue  # a file of the manifest that is missing is reported with its name
        except OSError as error:
            raise HoneError(ARTIFACT_CORRUPT, f"{_format_path(root / path)} can't be read: {error.strerror}") from None


def _find_difference(path: Path, expected: FileDigest) -> str | None:
    """Return how a file differs from the manifest; None: not at all.

    A digest is never reported, because it might be that of a secret file.
    """
    try:
        file = open_regular(path)
    except FileNotFoundError:
        return f"{path} is missing"
    except ValueError as error:
        return f"{path} can't be read: {error}"
    except OSError as error:
        return f"{path} can't be read: {error.strerror}"
    try:
        size = os.fstat(file).st_size
        if size != expected.size:
            return f"{path} has {size} bytes, and the manifest records {expected.size}"
        same = describe_file(file).sha256 == expected.sha256
    except OSError as error:
        return f"{path} can't be read: {error.strerror}"
    finally:
        os.close(file)
    return None if same else f"{path} differs: its sha256 is not {expected.sha256}, which the manifest records"


def _format_path(path: Path) -> str:
    return str(path) if str(path).isprintable() else repr(str(path))
