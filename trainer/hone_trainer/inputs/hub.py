"""Resolve names and revisions on the hub to commits, from the cache when the hub can't be reached."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal
from uuid import uuid4

from hone_api.io.terminal import hide_url_credentials
from hone_api.reasons import HUB_UNAUTHORIZED, HUB_UNREACHABLE, HoneError
from huggingface_hub import HfApi, constants, get_token, snapshot_download
from huggingface_hub.file_download import repo_folder_name

from hone_trainer.inputs.download_bar import DownloadBar
from hone_trainer.progress.activity import clear_activity
from hone_trainer.runtime.errors import is_connection_error, make_hub_error, translate_disk_full

RepoType = Literal["model", "dataset"]
# Files of a model on the hub that loading it may need, and its card, which gives the licence.
MODEL_FILES = ["*.json", "*.jinja", "*.model", "*.tiktoken", "*.txt", "*.py", "README.md"]
# The formats of weights, of which the first that a model has is downloaded. The last one is Mistral's, for vLLM.
WEIGHTS = ["*.safetensors", "*.bin", "consolidated*.safetensors"]
# An incomplete file that was not written to for so long has no download any more: its process was killed.
ABANDONED_SECONDS = 24 * 3600
# Seconds that the hub has to answer which commit a revision is.
TIMEOUT_SECONDS = 10.0
_SENDABLE = re.compile("[!-~]+")


def resolve_commit(kind: RepoType, name: str, revision: str) -> str:
    """Return the commit of a revision. When the hub can't be reached, use the cache, and only the cache from then on.

    Raises HoneError ModelNotFound, DatasetNotFound, HubUnauthorized, HubUnreachable.
    """
    if not is_offline() and not _SENDABLE.fullmatch(get_token() or "-"):
        raise HoneError(
            HUB_UNAUTHORIZED,
            f"spec.{kind}.name is {name}, and the hub's token has a character that no token has",
            remedy="Write it again, without blanks and invisible characters, into the Secret that spec.tokenSecret "
            "names, or outside a cluster into HF_TOKEN.",
        )
    try:
        return str(HfApi().repo_info(name, repo_type=kind, revision=revision, timeout=TIMEOUT_SECONDS).sha)
    except Exception as error:
        if not is_connection_error(error):
            raise make_hub_error(error, kind, name, revision) from error
        commit = _read_cached_commit(kind, name, revision)
        if commit:
            _go_offline()
            return commit
        raise HoneError(
            HUB_UNREACHABLE,
            f"spec.{kind}.name is {name}, which is not in the cache {constants.HF_HUB_CACHE}, "
            f"and the hub {hide_url_credentials(constants.ENDPOINT)} can't be reached",
        ) from error


def is_offline() -> bool:
    """Return whether only the cache is used."""
    return constants.is_offline_mode()


def find_cached_snapshot(kind: RepoType, name: str, commit: str) -> Path | None:
    """Return the folder in the cache that holds a commit's files, if there is one."""
    folder = _get_cache_folder(kind, name) / "snapshots" / commit
    return folder if folder.is_dir() else None


def download_model(name: str, commit: str, revision: str) -> Path:
    """Download all files of a model into the cache, and record which commit the revision is, for starts without a hub.

    Offline, the cached files are used. Return the folder of the commit. Raises HoneError HubUnauthorized,
    HubUnreachable, DiskFull, VolumeAccessDenied.
    """
    try:
        with clear_activity(), translate_disk_full(Path(constants.HF_HUB_CACHE)):
            _remove_abandoned_files(name)
            folder = _download_first_format(name, commit)
            _record_commit(name, revision, commit)
    except Exception as error:
        raise make_hub_error(error, "model", name, revision) from error
    return folder


@contextmanager
def work_offline() -> Iterator[None]:
    """Within the context, use only the cache: no library tries the hub."""
    from datasets import config

    before = constants.HF_HUB_OFFLINE, config.HF_HUB_OFFLINE
    _go_offline()
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, config.HF_HUB_OFFLINE = before


def _go_offline() -> None:
    """Keep the libraries from trying the hub: each of their attempts would wait and be repeated."""
    from datasets import config  # imported late: a plan does not need it, and it takes a second

    constants.HF_HUB_OFFLINE = True
    config.HF_HUB_OFFLINE = True


def _read_cached_commit(kind: RepoType, name: str, revision: str) -> str | None:
    reference = _get_cache_folder(kind, name) / "refs" / revision
    if reference.is_file():
        return reference.read_text().strip()
    return revision if find_cached_snapshot(kind, name, revision) else None


def _download_first_format(name: str, commit: str) -> Path:
    for weights in WEIGHTS:
        # Folders, and consolidated files next to others, hold the same weights in other formats.
        ignored = ["*/*"] if weights.startswith("consolidated") else ["*/*", "consolidated*"]
        patterns = [*MODEL_FILES, weights]
        folder = Path(
            snapshot_download(
                name, revision=commit, allow_patterns=patterns, ignore_patterns=ignored, tqdm_class=DownloadBar
            )
        )
        if any(folder.glob(weights)):
            break
    return folder


def _remove_abandoned_files(name: str) -> None:
    """Remove what killed downloads of a model left, which huggingface_hub neither continues nor removes."""
    for path in (_get_cache_folder("model", name) / "blobs").glob("*.incomplete"):
        with suppress(FileNotFoundError):  # another pod may complete or remove it
            if time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                path.unlink()


def _record_commit(name: str, revision: str, commit: str) -> None:
    """Write the cache's file for a branch or tag of a model, which pods may do at the same time."""
    if _read_cached_commit("model", name, revision) == commit:
        return
    reference = _get_cache_folder("model", name) / "refs" / revision
    reference.parent.mkdir(parents=True, exist_ok=True)
    temporary = reference.with_name(f".{reference.name}.{uuid4().hex}")
    temporary.write_text(commit)
    temporary.replace(reference)


def _get_cache_folder(kind: RepoType, name: str) -> Path:
    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type=kind)
