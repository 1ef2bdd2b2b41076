"""Which manifest proves a folder, by one rule for all programs that load an adapter or a model.

A folder is named as the artifact's tree, or as the adapter, merged or model folder in it, also by a link. Either way
the files that are loaded are those of the tree's manifest, and are compared with it by `verification`. A folder that
no manifest describes, such as one of the hub or one that PEFT wrote, proves nothing and is loaded as it is.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from hone_api.artifacts.manifest import ArtifactManifest, folders_of, read_manifest
from hone_api.artifacts.verification import verify
from hone_api.layout import ADAPTER, MANIFEST, MERGED, MODEL
from hone_api.reasons import ARTIFACT_CORRUPT, HoneError


@dataclass(frozen=True)
class Proof:
    """The artifact that a folder belongs to. `part` is the folder in it that was named; empty: the tree was named."""

    root: Path
    manifest: ArtifactManifest
    part: str = ""

    @property
    def has_adapter(self) -> bool:
        """Whether what was named is an adapter, or has one."""
        return ADAPTER in self._folders

    @property
    def model_folder(self) -> Path | None:
        """The folder of the full or merged model in what was named."""
        return next((self.root / name for name in self._folders if name != ADAPTER), None)

    def check(self) -> None:
        """Compare what was named with the manifest. Raises HoneError ArtifactCorrupt."""
        verify(self.root, self.manifest, self.part)

    @property
    def _folders(self) -> list[str]:
        return [self.part] if self.part else folders_of(self.manifest.kind)


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
    # Next to an artifact's own folders may lie another, such as one that `hone merge` wrote.
    return Proof(root, manifest, inside.name) if inside.name in folders_of(manifest.kind) else None


def prove(folder: Path) -> Proof | None:
    """Compare a folder with the manifest that describes it, and return that; None: there is none.

    Raises HoneError ArtifactCorrupt.
    """
    proof = find_proof(folder)
    if proof:
        proof.check()
    return proof
