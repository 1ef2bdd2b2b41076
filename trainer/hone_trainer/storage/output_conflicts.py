"""Conflicts in the output folder, found before anything is trained or overwritten.

Hone replaces what it can make again: damage in prepared/ or in a checkpoint. It removes nothing that it can't have
made:
a file in the place of a folder, a folder or device in the place of a file. `output_dir` and `prepare` call this.
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from hone_api.layout import ADAPTER, CACHE, CHECKPOINTS, LOGS, MANIFEST, MERGED, METRICS_LOG, MODEL, REPORT
from hone_api.reasons import INVALID_SPEC, HoneError

# A link to a folder on another volume works as well.
LINKABLE_FOLDERS = (CHECKPOINTS, LOGS, REPORT)
# Each is replaced by a new folder at the end of a run, which is impossible for a link.
REPLACED_FOLDERS = (ADAPTER, MERGED, MODEL)
FILES = (METRICS_LOG, MANIFEST, f"{CHECKPOINTS}/run.json", f"{CHECKPOINTS}/before.json")


def refuse_blockers(root: Path) -> None:
    """Raise HoneError InvalidSpec for the first path below the output folder that is not of the kind a run needs."""
    for path, problem in _find_blockers(root):
        raise HoneError(
            INVALID_SPEC,
            f"--output is {root}, where {path.relative_to(root)} {problem}",
            remedy=f"Move or remove {path}, and start again, or choose another --output.",
        )


def refuse_lock(path: Path) -> None:
    """Raise HoneError InvalidSpec when the lock is not a regular file: opening it could block, or empty a file.

    Raise it as well when the lock's parent is not a folder.
    """
    folder = path.parent
    if os.path.lexists(folder) and not folder.is_dir():
        raise HoneError(
            INVALID_SPEC,
            f"--output is {folder.parent}, where {folder.name} is {_describe_kind(folder)}, not a folder",
            remedy=f"Move or remove {folder}, and start again, or choose another --output.",
        )
    if os.path.lexists(path) and not stat.S_ISREG(path.lstat().st_mode):
        raise HoneError(
            INVALID_SPEC,
            f"--output is {path.parents[1]}, where {path.relative_to(path.parents[1])} is {_describe_kind(path)}, "
            "not a file",
            remedy=f"Move or remove {path}, and start again, or choose another --output.",
        )


def _find_blockers(root: Path) -> Iterator[tuple[Path, str]]:
    cache = [CACHE] if os.environ.get("HF_HOME") == str(root / CACHE) else []
    for path in (root / name for name in (*LINKABLE_FOLDERS, *cache)):
        if os.path.lexists(path) and not path.is_dir():
            yield path, f"is {_describe_kind(path)}, not a folder"
    for path in (root / name for name in REPLACED_FOLDERS):
        if os.path.lexists(path) and (path.is_symlink() or not path.is_dir()):
            yield path, f"is {_describe_kind(path)}, not a folder"
    for path in (root / name for name in FILES):
        if os.path.lexists(path) and not path.is_file():
            yield path, f"is {_describe_kind(path)}, not a file"
    for pattern in ("checkpoint-*", "step-*"):
        for path in sorted((root / CHECKPOINTS).glob(pattern)):
            if path.is_symlink() or not path.is_dir():
                yield path, f"is {_describe_kind(path)}, not a checkpoint"


def _describe_kind(path: Path) -> str:
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        return "a link"
    return "a folder" if stat.S_ISDIR(mode) else "a file" if stat.S_ISREG(mode) else "a device or pipe"
