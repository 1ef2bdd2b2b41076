"""Pull the artifact of a job into a folder: only what is missing, proved by the manifest, manifest.json last."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from hone_api import strictjson
from hone_api.artifacts.manifest import ArtifactManifest
from hone_api.io.durable_files import write_atomically
from hone_api.layout import MANIFEST
from hone_api.reasons import ARTIFACT_CORRUPT, HoneError
from pydantic import ValidationError

from hone.artifacts import target
from hone.artifacts.receive import Request
from hone.artifacts.target import Sizes
from hone.artifacts.transfer import Session
from hone.errors import ClientError


def parse_manifest(content: bytes, digest: str) -> ArtifactManifest:
    """Return the manifest. Raises HoneError ArtifactCorrupt unless it is that of the job's status."""
    try:
        manifest = ArtifactManifest.model_validate(strictjson.parse(content))
    except (ValidationError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise HoneError(ARTIFACT_CORRUPT, f"{MANIFEST} on the claim can't be read: {first}") from None
    target.check_names(manifest)
    if manifest.digest != digest:
        message = f"{MANIFEST} on the claim has the digest {manifest.digest}, the job's status has {digest}"
        raise HoneError(ARTIFACT_CORRUPT, message)
    return manifest


def pull_artifact(
    session: Session, root: Path, digest: str, begin: Callable[[Sizes], Callable[[str, int], None]]
) -> None:
    """Fill the folder `root`. `begin` gets the sizes and returns a function that gets each received piece's size.

    Raises ClientError, and HoneError ArtifactCorrupt.
    """
    content = session.fetch_small(MANIFEST)
    manifest = parse_manifest(content, digest)
    missing = target.find_missing(root, manifest)

    def requests() -> Mapping[str, Request]:
        found = {}
        for path in list(missing):
            expected = manifest.files[path]
            partial = target.make_partial_path(root, path, expected)
            offset = target.count_received_bytes(partial, expected)
            if offset == expected.size and partial.exists():
                target.finish_file(root, path, expected)
                missing.remove(path)
            else:
                found[path] = Request(partial, offset, expected.size)
        return found

    left = sum(request.size - request.offset for request in requests().values() if request.size is not None)
    if left > (free := shutil.disk_usage(root).free):
        raise ClientError(f"{root} has {free} bytes of free space, and {left} are missing", "Choose another DIR.")
    total = sum(each.size for each in manifest.files.values())
    session.fetch(requests, begin(Sizes(total, total - left)))
    write_atomically(root / MANIFEST, content)  # as the last file
