"""Find the manifest that describes a folder, by one rule for all programs that load an adapter or a model.

A folder is given as the artifact's tree, or as the adapter, merged or model folder in it, possibly by a link. In each
case the loaded files are those of the tree's manifest, and `verification` compares them with it. A folder that no
manifest describes, such as one from the hub or one that PEFT wrote, is loaded without verification.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from hone_api.artifacts.manifest import ArtifactManifest, list_folders, read_manifest
from hone_api.artifacts.verification import verify
from hone_api.layout import ADAPTER, MANIFEST, MERGED, MODEL
from hone_api.reasons import ARTIFACT_CORRUPT, HoneError


@dataclass(frozen=True)
class Proof:
    """The artifact that a folder belongs to. `part` is the given folder in it; empty: the tree itself was given."""

    root: Path
    manifest: ArtifactManifest
    part: str = ""

    @property
    def has_adapter(self) -> bool:
        """Return whether the given folder is an adapter, or has one."""
        return ADAPTER in self._folders

    @property
    def model_folder(self) -> Path | None:
        """Return the folder of the full or merged model in the given folder; None: there is none."""
        return next((self.root / name for name in self._folders if name != ADAPTER), None)

    def check(self) -> None:
        """Compare the given folder with the manifest. Raises HoneError ArtifactCorrupt."""
        verify(self.root, self.manifest, self.part)

    @property
    def _folders(self) -> list[str]:
        return [self.part] if self.part else list_folders(self.manifest.kind)


def find_proof(folder: Path) -> Proof | None:
    """Return the artifact that a folder belongs to; None: no manifest describes it. No file is compared yet.

    Raises HoneError ArtifactCorrupt when the manifest can't be read.
    """
    if os.path.lexists(folder / MANIFEST):
        return Proof(folder, read_manifest(folder))
    try:
        inside = Path(os.path.realpath(folder))
    except ValueError:  # a path with a null character, which names nothing
        return None
    root = inside.parent
    if inside.name not in (ADAPTER, MERGED, MODEL) or not inside.is_dir() or not os.path.lexists(root / MANIFEST):
        return None
    try:
        manifest = read_manifest(root)
    except HoneError as error:
        if error.reason is not ARTIFACT_CORRUPT:
            raise
        remedy = f"{error.remedy} If {inside} is no part of an artifact, move it to another folder."
        raise HoneError(ARTIFACT_CORRUPT, error.message, remedy=remedy) from None
    # Another folder may be next to an artifact's own folders, such as one that `hone merge` wrote.
    return Proof(root, manifest, inside.name) if inside.name in list_folders(manifest.kind) else None


def prove(folder: Path) -> Proof | None:
    """Compare a folder with the manifest that describes it, and return that; None: there is none.

    Raises HoneError ArtifactCorrupt.
    """
    proof = find_proof(folder)
    if proof:
        proof.check()
    return proof
