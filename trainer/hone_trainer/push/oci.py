"""Push an artifact to an OCI registry, as an artifact of ModelPack with the same files, and manifest.json.

Input is a `LocalArtifact`; output the digest in the registry, by which it can be pulled for good. `push.oci_push`
sends the blobs; here it is decided whether a tag may be replaced.
"""

import json
from collections.abc import Callable

from hone_api.layout import MANIFEST
from hone_api.reasons import DESTINATION_OCCUPIED, HoneError

from hone_trainer.push.artifact import LocalArtifact
from hone_trainer.push.oci_push import ArtifactPusher
from hone_trainer.remote.locations import Location

# Annotations of the artifact in the registry: the job, and the digest that manifest.json has.
JOB, DIGEST = "dev.hone.job", "dev.hone.digest"


def push_to_registry(location: Location, artifact: LocalArtifact, note: Callable[[str], None]) -> str:
    """Make the tag of a location the artifact, and return its digest there. Raises HoneError.

    Reasons: StoreUnauthorized, StoreUnreachable, DestinationMissing, DestinationOccupied, DestinationRefused,
    InvalidSpec.
    """
    job, digest = artifact.manifest.job, artifact.manifest.digest

    def check(held: bytes | None) -> None:
        artifact.refuse_replaced()
        if held is not None:
            _refuse_other_job(location, held, job)

    pusher = ArtifactPusher(location, note, name=job, annotations={JOB: job, DIGEST: digest}, check=check)
    files = {file.name: file.path for file in artifact.files} | {MANIFEST: artifact.root / MANIFEST}
    return pusher.push(files, {file.name: file.sha256 for file in artifact.files})


def _refuse_other_job(location: Location, held: bytes, job: str) -> None:
    """Raise HoneError DestinationOccupied where a tag holds anything but an artifact of the job."""
    annotations = json.loads(held).get("annotations")
    other = annotations.get(JOB) if isinstance(annotations, dict) else None
    if other != job:
        holds = f"holds the artifact of job {other}" if other else "holds what is no artifact of a job"
        remedy = "Name another tag or repository."
        raise HoneError(
            DESTINATION_OCCUPIED, f"{location.where}, which {holds}, and this one is of job {job}", remedy=remedy
        )
