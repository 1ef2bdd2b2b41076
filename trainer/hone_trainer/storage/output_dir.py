"""The output folder: its lock, and what an earlier start of the same run resolved.

A second trainer, another spec and files that don't come from Hone are refused, so that nothing is overwritten by
mistake. `run` takes the lock and looks for a finished artifact; `preparation.prepare` resumes from `load_run_state`.
"""

import errno
import fcntl
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from hone_api.artifacts.manifest import ArtifactManifest, read_manifest
from hone_api.artifacts.verification import verify
from hone_api.finetunejobs.spec import FineTuneJobSpec
from hone_api.io.durable_files import write_atomically
from hone_api.layout import ADAPTER, CHECKPOINTS, MANIFEST, MERGED, MODEL, PREPARED
from hone_api.reasons import ARTIFACT_CORRUPT, ARTIFACT_MISSING, DISK_FULL, INTERNAL_ERROR, INVALID_SPEC, HoneError
from pydantic import TypeAdapter, ValidationError

from hone_trainer.runtime.errors import make_access_denied_error
from hone_trainer.storage.output_conflicts import refuse_lock

PREPARED_FILE = f"{PREPARED}/prepared.json"
RUN_STATE_FILE = f"{CHECKPOINTS}/run.json"
LOCK_FILE = f"{CHECKPOINTS}/lock"
SAVE_FIELD = "spec.output.save"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunState:
    """The resolved inputs of a run (`spec` as on the wire), so that its later starts train exactly the same."""

    spec: dict[str, Any]
    model_commit: str | None = None
    dataset_commit: str | None = None  # of the first dataset
    dataset_fingerprint: str | None = None
    model_digest: str | None = None
    further_dataset_commits: list[str | None] = field(default_factory=list)

    @property
    def dataset_pins(self) -> list[str | None]:
        """The commit, or the revision of a URI, of each dataset."""
        return [self.dataset_commit, *self.further_dataset_commits]


@contextmanager
def lock_output_dir(root: Path) -> Iterator[None]:
    """Create the folder, and lock it against other trainers.

    Raises HoneError InvalidSpec, DiskFull or VolumeAccessDenied when it can't be written, InternalError when another
    trainer holds the lock.
    """
    try:
        refuse_lock(root / LOCK_FILE)
        (root / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        lock = (root / LOCK_FILE).open("a")
    except OSError as error:
        if denied := make_access_denied_error(error):
            raise denied from None
        reason = DISK_FULL if error.errno == errno.ENOSPC else INVALID_SPEC
        raise HoneError(reason, f"--output is {root}, which can't be written: {error.strerror}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise HoneError(
                INTERNAL_ERROR,
                f"--output is {root}, where another trainer is at work",
                remedy="Wait for it to end, or choose another --output.",
            ) from None
        except OSError as error:
            log.warning("%s can't be locked (%s): start no second trainer there", root, error.strerror)
        yield


def find_finished_artifact(root: Path, spec: FineTuneJobSpec) -> ArtifactManifest | None:
    """Return the artifact, when the folder holds the complete one of this spec.

    Raises HoneError InvalidSpec when it is of another spec, ArtifactCorrupt when a file differs from the manifest.
    """
    try:
        manifest = read_manifest(root)
    except HoneError as error:
        if error.reason is ARTIFACT_MISSING:
            return None
        raise HoneError(ARTIFACT_CORRUPT, error.message, remedy=_make_damage_remedy(root)) from None
    difference = find_differing_field(manifest.spec, spec)
    if difference:
        raise HoneError(
            INVALID_SPEC,
            f"{root} holds the artifact of another spec: {difference} differs",
            remedy=f"Choose another --output, or empty {root} to train from the beginning.",
        )
    try:
        verify(root, manifest)
    except HoneError as error:
        raise HoneError(ARTIFACT_CORRUPT, error.message, remedy=_make_damage_remedy(root)) from None
    return manifest


def _make_damage_remedy(root: Path) -> str:
    return f"Restore it, or remove {root / MANIFEST} and start again: the newest checkpoint is saved again."


def refuse_foreign_files(root: Path) -> None:
    """Raise HoneError InvalidSpec when a run would overwrite something that no run of Hone has left."""
    if (root / RUN_STATE_FILE).is_file():
        return
    foreign = [PREPARED] if not (root / PREPARED_FILE).is_file() else []
    for pattern in (ADAPTER, MERGED, MODEL, f"{CHECKPOINTS}/*-*", *foreign):
        for found in root.glob(pattern):
            raise HoneError(
                INVALID_SPEC,
                f"--output is {root}, whose {found.relative_to(root)} does not come from Hone and would be overwritten",
                remedy="Choose another --output.",
            )


def load_run_state(root: Path, spec: FineTuneJobSpec, has_checkpoint: bool) -> RunState:
    """Return what an earlier start resolved, else a new run.

    Raises HoneError InvalidSpec when its checkpoint is, or may be, of another spec.
    """
    path = root / RUN_STATE_FILE
    if not path.is_file():
        return RunState(spec.drop_unpublished())
    try:
        run = TypeAdapter(RunState).validate_json(
            path.read_bytes(), strict=True
        )  # fields of newer versions are ignored
    except ValidationError:
        return _replace_unreadable(path, spec, has_checkpoint)
    difference = find_differing_field(run.spec, spec)
    if not difference:
        return run
    if difference == SAVE_FIELD:  # training is the same: the spec may now omit a merge that failed
        return replace(run, spec=spec.drop_unpublished())
    if has_checkpoint:
        raise HoneError(
            INVALID_SPEC,
            f"{root} holds checkpoints of another spec: {difference} differs",
            remedy=f"Choose another --output, or empty {root} to train from the beginning.",
        )
    return RunState(spec.drop_unpublished())


def _replace_unreadable(path: Path, spec: FineTuneJobSpec, has_checkpoint: bool) -> RunState:
    """Return a new run. Raises HoneError InvalidSpec when there is a checkpoint, which may be of another spec."""
    if not has_checkpoint:
        return RunState(spec.drop_unpublished())
    raise HoneError(
        INVALID_SPEC,
        f"{path} is not what an earlier start wrote, so it is not known which spec the checkpoints next to it are of",
        remedy=f"Put it back, or choose another --output, or empty {path.parents[1]} to train again.",
    )


def save_run_state(root: Path, run: RunState) -> None:
    """Save what this run resolved."""
    write_atomically(root / RUN_STATE_FILE, json.dumps(asdict(run)))


def find_differing_field(before: dict[str, Any], after: FineTuneJobSpec) -> str | None:
    """Return the first field that changes the result and differs between a spec on the wire and a spec."""
    try:
        old = FineTuneJobSpec.model_validate(before)
    except ValidationError:
        return "spec"
    for name in ("model", "dataset", "datasets", "method", "lora", "training", "evaluation"):
        if getattr(old, name) != getattr(after, name):
            return f"spec.{name}"
    return None if old.output.save == after.output.save else SAVE_FIELD
