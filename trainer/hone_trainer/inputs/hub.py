"""Resolve names and revisions on the hub to commits, from the cache when the hub can't be reached."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from hone_api.reasons import HUB_UNREACHABLE, HoneError
from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.file_download import repo_folder_name

from hone_trainer.runtime.errors import is_connection_error, make_hub_error

RepoType = Literal["model", "dataset"]
# Seconds that the hub has to answer which commit a revision is.
TIMEOUT_SECONDS = 10.0


def resolve_commit(kind: RepoType, name: str, revision: str) -> str:
    """Return the commit of a revision. When the hub can't be reached, use the cache, and only the cache from then on.

    Raises HoneError ModelNotFound, DatasetNotFound, HubUnauthorized, HubUnreachable.
    """
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
            f"and the hub {constants.ENDPOINT} can't be reached",
        ) from error


def is_offline() -> bool:
    """Return whether only the cache is used."""
    return constants.is_offline_mode()


def find_cached_snapshot(kind: RepoType, name: str, commit: str) -> Path | None:
    """Return the folder in the cache that holds a commit's files, if there is one."""
    folder = _get_cache_folder(kind, name) / "snapshots" / commit
    return folder if folder.is_dir() else None


def download_files(kind: RepoType, name: str, commit: str, patterns: list[str]) -> Path:
    """Download the matching files of a commit into the cache; offline, return the cached ones."""
    ignored = ["*/*", "consolidated*"]  # other formats of the same weights
    return Path(
        snapshot_download(name, repo_type=kind, revision=commit, allow_patterns=patterns, ignore_patterns=ignored)
    )


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


def _get_cache_folder(kind: RepoType, name: str) -> Path:
    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type=kind)
