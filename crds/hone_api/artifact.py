"""manifest.json: what an artifact is, and the proof that its files are what was trained.

The trainer writes it last and atomically: no manifest, no artifact.
"""

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from hone_api.common import ApiModel
from hone_api.layout import MANIFEST
from hone_api.reasons import ARTIFACT_CORRUPT, ARTIFACT_MISSING, HoneError

ArtifactKind = Literal["adapter", "merged", "both", "model"]


class FileDigest(ApiModel):
    """What a file must be: `sha256` in hex, `size` in bytes."""

    sha256: str
    size: int


class BaseModelReference(ApiModel):
    """The base model: a hub name with the commit that was loaded, or a claim and a path on it."""

    name: str | None = None
    claim: str | None = None
    path: str | None = None
    revision: str | None = None


class BaseConfig(ApiModel):
    """What of the base model's configuration decides which engine takes it, and with how much memory."""

    architecture: str | None = Field(None, description="transformers' class, such as LlamaForCausalLM.")
    quantization: str | None = Field(None, description="quant_method of the checkpoint, if it is quantized.")
    embedding_modules: list[str] = Field([], description="Names of the input embedding and of the output head.")
    cache_bytes_per_token: int | None = Field(
        None,
        description="Key-value cache of one token in 16 bits, of the layers that keep every token; left out where "
        "the configuration does not tell.",
    )


class ArtifactManifest(ApiModel):
    """The content of manifest.json. The keys of `files` are paths relative to the tree's root."""

    kind: ArtifactKind
    job: str
    digest: str
    base_model: BaseModelReference
    base_config: BaseConfig | None = None
    dataset_fingerprint: str
    files: dict[str, FileDigest]
    metrics: dict[str, float]
    parameters: dict[str, int]
    versions: dict[str, str]
    spec: dict[str, Any]


def digest_of(files: dict[str, FileDigest]) -> str:
    """`sha256:…` over the sorted lines `<sha256>  <path>`, as `sha256sum` prints them."""
    lines = "".join(f"{file.sha256}  {path}\n" for path, file in sorted(files.items()))
    return "sha256:" + hashlib.sha256(lines.encode()).hexdigest()


def describe_files(root: Path, folders: list[str]) -> dict[str, FileDigest]:
    """Digest and size of every file below the folders of an artifact tree, hashed in parallel."""
    paths = [path for folder in folders for path in sorted((root / folder).rglob("*")) if path.is_file()]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip([path.relative_to(root).as_posix() for path in paths], pool.map(_describe, paths), strict=True))


def write_manifest(root: Path, manifest: ArtifactManifest) -> None:
    """Write manifest.json so that it is there whole or not at all, also after a power cut."""
    temporary = root / f".{MANIFEST}.tmp"
    with temporary.open("w") as file:
        json.dump(manifest.to_wire(), file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(root / MANIFEST)
    folder = os.open(root, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_manifest(root: Path) -> ArtifactManifest:
    """Read manifest.json. Raises HoneError ArtifactMissing without one, ArtifactCorrupt when it can't be read."""
    path = root / MANIFEST
    try:
        return ArtifactManifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise HoneError(ARTIFACT_MISSING, f"{root} has no {MANIFEST}") from None
    except ValidationError as error:
        raise HoneError(ARTIFACT_CORRUPT, f"{path} is not an artifact's manifest: {error.errors()[0]['msg']}") from None


def verify(root: Path, manifest: ArtifactManifest, below: str = "") -> None:
    """Compare every file, or those below a folder, with the manifest.

    Raises HoneError ArtifactCorrupt naming the first that differs.
    """
    if digest_of(manifest.files) != manifest.digest:
        raise HoneError(ARTIFACT_CORRUPT, f"{root / MANIFEST} gives digest {manifest.digest}, its files make another")
    files = [(path, expected) for path, expected in manifest.files.items() if Path(path).is_relative_to(below)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for error in pool.map(lambda item: _difference(root / item[0], item[1]), files):
            if error:
                raise HoneError(ARTIFACT_CORRUPT, error)


def _describe(path: Path) -> FileDigest:
    with path.open("rb") as file:
        if hasattr(os, "posix_fadvise"):  # Linux then reads further ahead while this hashes
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        return FileDigest(sha256=hashlib.file_digest(file, "sha256").hexdigest(), size=path.stat().st_size)


def _difference(path: Path, expected: FileDigest) -> str | None:
    if not path.is_file():
        return f"{path} is missing"
    if path.stat().st_size != expected.size:
        return f"{path} has {path.stat().st_size} bytes, the manifest says {expected.size}"
    found = _describe(path).sha256
    return None if found == expected.sha256 else f"{path} has sha256 {found}, the manifest says {expected.sha256}"
