"""Decide what a push does, from the artifact and from what the destination holds. Pure.

The same comparison is made before the upload, where it makes a repeated push send nothing, and after it, where it
proves that everything has arrived. `s3` and `hub` carry out the plan.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from hone_api.artifacts.manifest import ArtifactManifest
from hone_api.reasons import DESTINATION_OCCUPIED, HoneError, Reason

from hone_trainer.push.artifact import LocalFile


class HeldFile(NamedTuple):
    """A file that a destination holds. `digest` is in the destination's own terms: an ETag, or the hub's."""

    size: int
    digest: str


@dataclass(frozen=True)
class PushPlan:
    """The files to upload, and the names of files of an earlier artifact, which are removed first."""

    upload: list[LocalFile]
    remove: list[str]

    @property
    def upload_bytes(self) -> int:
        """The bytes to send."""
        return sum(file.size for file in self.upload)


def plan_push(
    files: Sequence[LocalFile],
    held: Mapping[str, HeldFile],
    is_same: Callable[[LocalFile, HeldFile], bool],
    earlier: Collection[str] = (),
) -> PushPlan:
    """Return the plan. `is_same` compares the content of files of the same size.

    `earlier` are the names of the files of the artifact that is replaced.
    """
    wanted = {file.name for file in files}
    upload = [
        file
        for file in files
        if (found := held.get(file.name)) is None or found.size != file.size or not is_same(file, found)
    ]
    return PushPlan(upload, sorted(name for name in earlier if name in held and name not in wanted))


def refuse_other_job(where: str, before: ArtifactManifest, now: ArtifactManifest, *, remedy: str) -> None:
    """Raise HoneError DestinationOccupied where the artifact of another job would be replaced."""
    if before.job != now.job:
        found = f"{where}, which holds the artifact {before.digest} of job {before.job}"
        raise HoneError(DESTINATION_OCCUPIED, f"{found}, and this one is of job {now.job}", remedy=remedy)


def make_damage_error(reason: Reason, where: str, plan: PushPlan, attempts: int) -> HoneError:
    """Return the failure of a destination that holds other content than was sent, each time."""
    names = ", ".join(file.name for file in plan.upload[:3])
    return HoneError(reason, f"{where}, and after {attempts} uploads it does not hold the content of {names}")
