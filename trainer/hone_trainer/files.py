"""Writing so that a crash or a power cut leaves a file whole or absent."""

import os
from pathlib import Path


def flush(path: Path) -> None:
    """Force a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_tree(folder: Path) -> None:
    """Force everything below a folder, and the folder, to the disk."""
    for path in folder.rglob("*"):
        flush(path)
    flush(folder)


def write_atomically(path: Path, text: str) -> None:
    """Write a file that is there whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    flush(temporary)
    temporary.replace(path)
    flush(path.parent)
