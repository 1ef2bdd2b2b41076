"""The digest of a base model on a claim, to detect that the model was replaced between two starts.

Every byte counts: times and sizes stay the same when a model is copied over another of its kind. Blocks are hashed in
threads, which hashlib runs at the same time; the files are then in the page cache, from which loading reads them.
"""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

BLOCK_BYTES = 64 * 1024**2
PIECE_BYTES = 1024**2
TEXTS = (".json", ".jinja", ".model", ".txt")
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".py")
# The folder in which transformers keeps chat templates that have a name.
TEMPLATES = "additional_chat_templates"


def list_files(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Return the files with these endings that transformers may read of a model or tokenizer in a folder."""
    return [
        path
        for part in (folder, folder / TEMPLATES)
        if part.is_dir()
        for path in sorted(part.iterdir())
        if path.is_file() and path.suffix in suffixes and not path.name.startswith(".")
    ]


def digest_files(folder: Path) -> str:
    """Return the digest of all files that make up the model in a folder."""
    paths = list_files(folder, TEXTS + WEIGHTS)
    blocks = [(path, start) for path in paths for start in range(0, max(path.stat().st_size, 1), BLOCK_BYTES)]
    digest = hashlib.sha256()
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        for (path, start), found in zip(blocks, threads.map(_digest_block, blocks), strict=True):
            digest.update(f"{path.relative_to(folder)}\0{start}\0".encode() + found)
    return "sha256:" + digest.hexdigest()


def _digest_block(block: tuple[Path, int]) -> bytes:
    path, start = block
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(start)
        for at in range(0, BLOCK_BYTES, PIECE_BYTES):
            piece = file.read(min(PIECE_BYTES, BLOCK_BYTES - at))
            if not piece:
                break
            digest.update(piece)
    return digest.digest()
