"""Push an artifact to an OCI registry, as an artifact of ModelPack with the same files, and manifest.json.

Input is a `LocalArtifact`; output the digest in the registry, by which it can be pulled for good. `remote.oci_push`
sends the blobs; here it is decided whether a tag may be replaced.
"""

import json
from collections.abc import Callable

from hone_api.layout import MANIFEST
from hone_api.reasons import DESTINATION_OCCUPIED, HoneError

from hone_trainer.push.artifact import LocalArtifact
from hone_trainer.remote.locations import Location
from hone_trainer.remote.oci_push import ArtifactPusher
from hone_trainer.remote.oci_registry import Registry

# Annotations of the artifact in the registry: the job, and the digest that manifest.json has.
JOB, DIGEST = "dev.hone.job", "dev.hone.digest"


def push_to_registry(location: Location, artifact: LocalArtifact, note: Callable[[str], None]) -> str:
    """Make the tag of a location the artifact, and return its digest there. Raises HoneError.

    Reasons: StoreUnauthorized, StoreUnreachable, DestinationMissing, DestinationOccupied, InvalidSpec.
    """
    job, digest = artifact.manifest.job, artifact.manifest.digest
    pusher = ArtifactPusher(location, note, name=job, annotations={JOB: job, DIGEST: digest})
    held = pusher.retry(Registry(location, can_push=True).read_manifest)
    if held and (other := _find_job(held[0])) != job:
        holds = f"holds the artifact of job {other}" if other else "holds what is no artifact of a job"
        remedy = "Name another tag or repository."
        raise HoneError(
            DESTINATION_OCCUPIED, f"{location.where}, which {holds}, and this one is of job {job}", remedy=remedy
        )
    files = {file.name: file.path for file in artifact.files} | {MANIFEST: artifact.root / MANIFEST}
    return pusher.push(files, {file.name: file.sha256 for file in artifact.files})


def _find_job(manifest: bytes) -> str | None:
    """Return the job of an artifact that a push has written; None for any other."""
    try:
        found = (json.loads(manifest).get("annotations") or {}).get(JOB)
    except (ValueError, AttributeError):
        return None
    return found if isinstance(found, str) else None
