"""Checkpoints that are complete or absent.

Trainer writes `checkpoint-N` file by file. Once all of it is on the disk, a marker with the size and checksums of every
file is added, and the folder is renamed to `step-0000000N`. A folder without the marker was cut short; one that differs
from its marker is damaged. Neither is used. `training.trainer` calls `commit_checkpoint`, `preparation.prepare` calls
`find_newest_checkpoint`.
"""

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

from hone_api.io.durable_files import flush_to_disk, write_atomically
from hone_api.io.durable_files import remove_path as remove_path
from hone_api.layout import make_checkpoint_name

from hone_trainer.runtime.checksums import CHECKSUM, FileChecksum, checksum_content, find_difference, flush_and_checksum

MARKER = "hone.json"


@dataclass
class RunTotals:
    """The sums that Trainer loses when it resumes. Losses are sums over steps; `runtime` is in seconds, of all starts
    together.
    """

    step: int
    total_steps: int
    tokens: int
    runtime: float
    samples: float
    loss_sum: float
    loss_since_log: float
    last_logged_step: int
    averages_since_log: dict[str, list[float]] = field(default_factory=dict)
    eval_metrics: dict[str, float] = field(default_factory=dict)
    # Whether the evaluation at this step was cut short and must be done before the next one.
    evaluation_due: bool = False
    # One for each process; `loss_since_log` is their mean.
    losses_since_log: list[float] = field(default_factory=list)

    @property
    def process_count(self) -> int:
        return len(self.losses_since_log) or 1

    @property
    def is_finished(self) -> bool:
        return self.step >= self.total_steps


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint."""

    folder: Path
    totals: RunTotals


def _list_folders(root: Path, pattern: str) -> list[Path]:
    """Return the folders that a trainer made; files and links with such names are not its own."""
    return sorted(folder for folder in root.glob(pattern) if folder.is_dir() and not folder.is_symlink())


def find_newest_checkpoint(root: Path) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest good checkpoint below `root`, and warnings about bad ones, which are removed.

    Every file of a checkpoint is read, newest checkpoint first, until one is good.
    """
    warnings = []
    for folder in _list_folders(root, "checkpoint-*"):
        warnings.append(f"removing {folder}: its writing was cut short")
        shutil.rmtree(folder)
    for folder in reversed(_list_folders(root, "step-*")):
        try:
            found = _read_checkpoint(folder)
        except OSError as error:  # kept, since it may be readable again later
            warnings.append(f"leaving out {folder}, which can't be read: {error.strerror}")
            continue
        if isinstance(found, Checkpoint):
            return found, warnings
        warnings.append(f"removing {folder}: {found}")
        # The marker is removed first, so that an interrupted removal leaves nothing that looks complete.
        remove_path(folder / MARKER)
        shutil.rmtree(folder, ignore_errors=True)
    if warnings:
        warnings.append("no good checkpoint is left: training starts from the beginning")
    return None, warnings


def commit_checkpoint(written: Path, totals: RunTotals, limit: int) -> list[Path]:
    """Turn what Trainer has written into a complete checkpoint, and keep it and the newest `limit` - 1 before it.

    Return the folders that are left to remove, which takes a while: they no longer count as checkpoints.
    """
    write_atomically(written / MARKER, _make_marker(totals, flush_and_checksum(written)))
    final = written.parent / make_checkpoint_name(totals.step)
    if final.exists():
        shutil.rmtree(final)
    written.rename(final)
    flush_to_disk(written.parent)
    before = [folder for folder in _list_folders(final.parent, "step-*") if folder.name < final.name]
    # Newer checkpoints were left out at the start, or this step would not have been trained again.
    newer = [folder for folder in _list_folders(final.parent, "step-*") if folder.name > final.name]
    outdated = before[: max(len(before) - (limit - 1), 0)] + newer
    for old in outdated:
        remove_path(old / MARKER)
    return outdated


def remove_checkpoints(outdated: list[Path]) -> None:
    """Remove the folders that `commit_checkpoint` returned."""
    for old in outdated:
        shutil.rmtree(old, ignore_errors=True)


def _make_marker(totals: RunTotals, sums: dict[str, FileChecksum]) -> str:
    # This key stays: a run resumes from checkpoints of earlier versions.
    content = {"account": asdict(totals), "files": {name: asdict(found) for name, found in sums.items()}}
    return json.dumps({"content": content, CHECKSUM: checksum_content(content)})


def _read_checkpoint(folder: Path) -> Checkpoint | str:
    """Return the checkpoint, or what is wrong with it."""
    if not (folder / MARKER).is_file():
        return "its writing was cut short"
    try:
        marker = json.loads((folder / MARKER).read_bytes())
        content = marker["content"]
        if marker[CHECKSUM] != checksum_content(content):
            return f"{MARKER} has other content than was written"
        totals = RunTotals(**content["account"])
        files = {name: FileChecksum(**found) for name, found in content["files"].items()}
    except (ValueError, TypeError, KeyError):
        return f"{MARKER} can't be understood"
    return find_difference(folder, files) or Checkpoint(folder, totals)
