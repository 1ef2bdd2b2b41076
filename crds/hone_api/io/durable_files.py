"""Writes that survive a crash: after a power cut, too, a file is complete or absent.

A file is written under a temporary name, forced to the disk and renamed; then its folder is forced to the disk as well.
"""

import os
import shutil
from pathlib import Path


def flush_to_disk(path: Path) -> None:
    """Force a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_tree(folder: Path) -> None:
    """Force a folder and everything below it to the disk."""
    for path in folder.rglob("*"):
        flush_to_disk(path)
    flush_to_disk(folder)


def remove_path(path: Path) -> None:
    """Remove a folder with its content, a file, or a link, if it exists. The target of a link is kept."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file that is complete or absent at any time."""
    temporary = path.with_name(f".{path.name}.tmp")
    remove_path(temporary)
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    flush_to_disk(temporary)
    temporary.replace(path)
    flush_to_disk(path.parent)
