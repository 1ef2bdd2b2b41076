"""Artifacts with random weights, as the trainer leaves them."""

import os
import random
from pathlib import Path

from hone_api.artifacts.manifest import (
    ArtifactKind,
    BaseModelReference,
    list_folders,
)
from hone_api.layout import ADAPTER
from sealed_artifacts import seal

MEBIBYTE = 2**20


def write_artifact(
    root: Path,
    kind: ArtifactKind = "adapter",
    *,
    seed: int = 0,
    shards: tuple[int, ...] = (1000,),
    job: str = "faq",
    sparse_bytes: int = 0,
) -> Path:
    """Write an artifact whose weights have these sizes in bytes, and return its folder. The same seed: same bytes.

    `sparse_bytes`: to which size the first file is made longer, with zeros.
    """
    chance = random.Random(seed)
    for folder in list_folders(kind):
        path = root / folder
        path.mkdir(parents=True)
        stem, config = ("adapter_model", "adapter_config.json") if folder == ADAPTER else ("model", "config.json")
        sizes = shards[:1] if folder == ADAPTER else shards
        for number, size in enumerate(sizes, 1):
            name = stem if len(sizes) == 1 else f"{stem}-{number:05}-of-{len(sizes):05}"
            (path / f"{name}.safetensors").write_bytes(chance.randbytes(size))
            if sparse_bytes and number == 1:
                os.truncate(path / f"{name}.safetensors", sparse_bytes)
        (path / config).write_text(f'{{"seed": {seed}}}')
        (path / "README.md").write_text(f"# {job}\n")
        (path / "merges.txt").write_bytes(b"")
    seal(root, kind, BaseModelReference(name="me/tiny"), job=job)
    return root


def list_content(root: Path) -> dict[str, bytes]:
    """Return the files of an artifact, with its manifest, by their paths in it."""
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}
