"""Checkpoints that are complete or absent.

Trainer writes `checkpoint-N` file by file. When it is whole and on the disk, the marker goes into it and it is renamed
to `step-0000000N`. Whatever lacks the marker was cut short, and is removed at the next start.
"""

import json
import logging
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

from hone_api.layout import checkpoint_name

from hone_trainer.files import flush, flush_tree, write_atomically

MARKER = "hone.json"

log = logging.getLogger(__name__)


@dataclass
class Account:
    """What Trainer forgets at a resume. Losses are sums over steps, `runtime` seconds of training so far."""

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

    @property
    def finished(self) -> bool:
        return self.step >= self.total_steps


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint."""

    folder: Path
    account: Account


def newest(root: Path) -> Checkpoint | None:
    """The newest complete checkpoint below `root`; incomplete ones are removed with a warning."""
    complete = []
    for folder in sorted(root.glob("*-*")):
        if not folder.is_dir():
            continue
        if folder.name.startswith("step-") and (folder / MARKER).is_file():
            complete.append(folder)
        else:
            log.warning("removing %s: its writing was cut short", folder)
            shutil.rmtree(folder)
    if not complete:
        return None
    return Checkpoint(complete[-1], Account(**json.loads((complete[-1] / MARKER).read_text())))


def seal(written: Path, account: Account, limit: int) -> Path:
    """Turn what Trainer has written into a complete checkpoint, then keep the newest `limit`."""
    flush_tree(written)
    write_atomically(written / MARKER, json.dumps(asdict(account)))
    final = written.parent / checkpoint_name(account.step)
    if final.exists():
        shutil.rmtree(final)
    written.rename(final)
    flush(written.parent)
    for old in sorted(written.parent.glob("step-*"))[:-limit]:
        # The marker goes first, so that a removal cut short leaves nothing that looks complete.
        (old / MARKER).unlink(missing_ok=True)
        shutil.rmtree(old, ignore_errors=True)
    return final
