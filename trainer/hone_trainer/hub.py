"""Names and revisions on the hub to commits, from the cache when the hub can't be reached."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hone_api.reasons import HUB_UNREACHABLE, HoneError
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import OfflineModeIsEnabled
from huggingface_hub.file_download import repo_folder_name

from hone_trainer.errors import hub_error, is_connection_error

RepoType = Literal["model", "dataset"]
TIMEOUT = 10.0
"""Seconds that the hub has to answer which commit a revision is."""


@dataclass(frozen=True)
class Commit:
    """A commit; `offline` when the hub can't be reached and the cache must do."""

    commit: str
    offline: bool


def resolve(kind: RepoType, name: str, revision: str) -> Commit:
    """The commit that a revision is. Raises ModelNotFound, DatasetNotFound, HubUnauthorized, HubUnreachable."""
    try:
        info = HfApi().repo_info(name, repo_type=kind, revision=revision, timeout=TIMEOUT)
        return Commit(str(info.sha), offline=False)
    except Exception as error:
        if not (isinstance(error, OfflineModeIsEnabled) or is_connection_error(error)):
            raise hub_error(error, kind, name, revision) from error
        cached = _cached(kind, name, revision)
        if cached:
            return Commit(cached, offline=True)
        raise HoneError(
            HUB_UNREACHABLE,
            f"spec.{kind}.name is {name}, which is not in the cache {constants.HF_HUB_CACHE}, and {constants.ENDPOINT} "
            "can't be reached" + (" (HF_HUB_OFFLINE is set)" if isinstance(error, OfflineModeIsEnabled) else ""),
        ) from error


def _cached(kind: RepoType, name: str, revision: str) -> str | None:
    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type=kind)
    reference = folder / "refs" / revision
    if reference.is_file():
        return reference.read_text().strip()
    return revision if (folder / "snapshots" / revision).is_dir() else None
