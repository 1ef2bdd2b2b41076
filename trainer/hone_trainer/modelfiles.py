"""The content of a base model on a claim as one digest, so that a model that is replaced between two starts is noticed.

Every byte counts: times and sizes stay the same where a model is copied over another of its kind. Blocks are hashed in
threads, which hashlib runs at the same time; the files are then in the page cache, from where loading reads them.
"""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

BLOCK = 64 * 1024**2
PIECE = 1024**2
IGNORED = ("README.md", "LICENSE")


def digest_files(folder: Path) -> str:
    """Return the digest of all files in a model's folder, without its card and hidden files."""
    paths = [path for path in sorted(folder.iterdir()) if path.is_file() and path.name not in IGNORED]
    paths = [path for path in paths if not path.name.startswith(".")]
    blocks = [(path, start) for path in paths for start in range(0, max(path.stat().st_size, 1), BLOCK)]
    digest = hashlib.sha256()
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        for (path, start), found in zip(blocks, threads.map(_digest_block, blocks), strict=True):
            digest.update(f"{path.name}\0{start}\0".encode() + found)
    return "sha256:" + digest.hexdigest()


def _digest_block(block: tuple[Path, int]) -> bytes:
    path, start = block
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(start)
        for at in range(0, BLOCK, PIECE):
            piece = file.read(min(PIECE, BLOCK - at))
            if not piece:
                break
            digest.update(piece)
    return digest.digest()
