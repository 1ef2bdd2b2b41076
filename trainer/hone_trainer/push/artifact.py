"""The artifact that is pushed: its manifest, and its files by the names that they get at a destination.

Input is the output folder of a job; output is a `LocalArtifact` whose files were compared with its manifest. `plan`
compares them with what a destination holds.
"""

from dataclasses import dataclass
from pathlib import Path

from hone_api.artifacts.manifest import ArtifactManifest, read_content, read_manifest
from hone_api.artifacts.verification import verify
from hone_api.layout import MANIFEST
from hone_api.reasons import ARTIFACT_CORRUPT, HoneError


@dataclass(frozen=True)
class LocalFile:
    """A file of the artifact. `name` is its path at the destination."""

    name: str
    path: Path
    size: int
    sha256: str


@dataclass(frozen=True)
class LocalArtifact:
    """A verified artifact. `content` is that of its manifest.json."""

    root: Path
    manifest: ArtifactManifest
    content: bytes

    @property
    def files(self) -> list[LocalFile]:
        """The files by their paths in the artifact, without manifest.json."""
        listed = self.manifest.files.items()
        return [LocalFile(name, self.root / name, found.size, found.sha256) for name, found in listed]

    def refuse_replaced(self) -> None:
        """Raise HoneError ArtifactCorrupt where the folder no longer has this manifest: files may be of another run."""
        try:
            is_same = read_content(self.root / MANIFEST) == self.content
        except (OSError, ValueError):
            is_same = False
        if not is_same:
            remedy = "Push again when nothing writes to this folder."
            raise HoneError(ARTIFACT_CORRUPT, f"{self.root} has changed while it was pushed", remedy=remedy)


def load_artifact(root: Path, digest: str | None = None) -> LocalArtifact:
    """Return the artifact in a folder, which must have this digest if one is given.

    Raises HoneError ArtifactMissing, ArtifactCorrupt.
    """
    manifest = read_manifest(root)
    if digest and manifest.digest != digest:
        raise HoneError(
            ARTIFACT_CORRUPT,
            f"{root} should hold the artifact {digest}, and its manifest has {manifest.digest}",
            remedy="Let no other job write to this folder, and run the FineTuneJob again.",
        )
    verify(root, manifest)
    return LocalArtifact(root, manifest, read_content(root / MANIFEST))
