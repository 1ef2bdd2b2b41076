"""Checksums of files and JSON content, which later detect damage by a disk.

Checkpoints and prepared/ keep them, so that a resumed run reads what was written or starts from something older.
"""

import json
import os
import zlib
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from hone_api.io.durable_files import flush_to_disk

# Bytes that one checksum covers.
PART_BYTES = 16 * 2**20

# The field of a JSON file that holds the checksum of all its other fields.
CHECKSUM = "crc32"

_THREADS = (os.cpu_count() or 1) + 4  # some wait for the disk while others compute


@dataclass(frozen=True)
class FileChecksum:
    """Size in bytes and the CRC-32 of each PART of a file.

    CRC-32 is used since it has to detect damage by a disk, not forgery, and it costs a third of SHA-256.
    """

    size: int
    crc32: list[int]


def flush_and_checksum(folder: Path) -> dict[str, FileChecksum]:
    """Do as flush_tree, and return the checksums of all files by relative path, computed while the disk writes."""
    with ThreadPoolExecutor(_THREADS) as pool:
        flushed = [pool.submit(flush_to_disk, path) for path in folder.rglob("*")]
        sums = _checksum_files(folder, pool)
        for done in flushed:
            done.result()
    flush_to_disk(folder)
    return sums


def find_difference(folder: Path, expected: dict[str, FileChecksum]) -> str | None:
    """Return what is wrong with the first file below the folder that differs from `expected`; None when all match.

    Raises OSError when a file can't be read.
    """
    for name, was in expected.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != was.size:
            return f"{name} has {path.stat().st_size} bytes of {was.size}"
    with ThreadPoolExecutor(_THREADS) as pool:
        for name, now in _checksum_files(folder, pool, list(expected)).items():
            if now != expected[name]:
                return f"{name} has other content than was written"
    return None


def checksum_content(content: object) -> int:
    """Return the CRC-32 of JSON content, independent of the order of its fields."""
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def _checksum_files(folder: Path, pool: ThreadPoolExecutor, names: list[str] | None = None) -> dict[str, FileChecksum]:
    if names is None:
        names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
    sizes = {name: (folder / name).stat().st_size for name in names}
    parts: dict[str, list[Future[int]]] = {
        name: [pool.submit(_compute_crc32, folder / name, offset) for offset in range(0, size, PART_BYTES)]
        for name, size in sizes.items()
    }
    return {name: FileChecksum(sizes[name], [part.result() for part in parts[name]]) for name in names}


def _compute_crc32(path: Path, offset: int) -> int:
    with path.open("rb", buffering=0) as file:
        file.seek(offset)
        return zlib.crc32(file.read(PART_BYTES))
