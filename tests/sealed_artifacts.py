"""Manifests for the artifacts that tests write themselves."""

from collections.abc import Mapping
from pathlib import Path

from hone_api.artifacts.manifest import (
    ArtifactKind,
    ArtifactManifest,
    BaseModelReference,
    FileDigest,
    compute_files_digest,
    describe_files,
    list_folders,
    write_manifest,
)

SOME_BASE = BaseModelReference(name="a/b")


def seal(
    root: Path,
    kind: ArtifactKind,
    base: BaseModelReference = SOME_BASE,
    *,
    job: str = "job",
    files: Mapping[str, FileDigest] | None = None,
) -> ArtifactManifest:
    """Write and return the manifest.json of a tree, as the trainer does, or one with another list of files."""
    listed = describe_files(root, list_folders(kind)) if files is None else dict(files)
    manifest = ArtifactManifest(
        kind=kind,
        job=job,
        digest=compute_files_digest(listed),
        base_model=base,
        dataset_fingerprint="f",
        files=listed,
        metrics={},
        parameters={},
        versions={},
        spec={},
    )
    write_manifest(root, manifest)
    return manifest
