"""The output folder: whose it is, and what an earlier start of the same run resolved."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hone_api.artifact import ArtifactManifest, read_manifest, verify
from hone_api.finetunejob import FineTuneJobSpec
from hone_api.layout import ADAPTER, CHECKPOINTS, MANIFEST, MERGED, MODEL
from hone_api.reasons import ARTIFACT_MISSING, INVALID_SPEC, HoneError

from hone_trainer.files import write_atomically

RUN = f"{CHECKPOINTS}/run.json"


@dataclass(frozen=True)
class Run:
    """What a run trains, so that its later starts train the very same."""

    spec: dict[str, Any]
    model_commit: str | None = None
    dataset_commit: str | None = None
    dataset_fingerprint: str | None = None


def deciding(spec: dict[str, Any]) -> dict[str, Any]:
    """The part of a spec (as on the wire) that decides the result."""
    found = {name: spec.get(name) for name in ("model", "dataset", "method", "lora", "training")}
    return {**found, "save": spec.get("output", {}).get("save")}


def finished(root: Path, spec: FineTuneJobSpec) -> ArtifactManifest | None:
    """The artifact, when the folder holds the complete one of this spec.

    Raises HoneError InvalidSpec when it holds another spec's, ArtifactCorrupt when a file differs from the manifest.
    """
    try:
        manifest = read_manifest(root)
    except HoneError as error:
        if error.reason is ARTIFACT_MISSING:
            return None
        raise
    if deciding(manifest.spec) != deciding(spec.to_wire()):
        raise HoneError(
            INVALID_SPEC,
            f"{root} holds the artifact of another spec ({_difference(manifest.spec, spec.to_wire())})",
            remedy=f"Choose another --output, or remove {root / MANIFEST} and {root / CHECKPOINTS} to train anew.",
        )
    verify(root, manifest)
    return manifest


def earlier(root: Path, spec: FineTuneJobSpec, has_checkpoint: bool) -> Run:
    """What an earlier start resolved, else a new run. Raises HoneError InvalidSpec when its checkpoint is another's."""
    wanted = deciding(spec.to_wire())
    path = root / RUN
    if not path.is_file():
        for name in (ADAPTER, MERGED, MODEL):
            if (root / name).exists():
                raise HoneError(
                    INVALID_SPEC,
                    f"--output is {root}, which has a folder {name} that does not come from Hone",
                    remedy="Choose another --output.",
                )
        return Run(wanted)
    run = Run(**json.loads(path.read_text()))
    if run.spec == wanted:
        return run
    if has_checkpoint:
        raise HoneError(
            INVALID_SPEC,
            f"{root} holds checkpoints of another spec ({_difference(run.spec, wanted)})",
            remedy=f"Choose another --output, or remove {root / CHECKPOINTS} to train anew.",
        )
    return Run(wanted)


def remember(root: Path, run: Run) -> None:
    """Keep what this run resolved."""
    write_atomically(root / RUN, json.dumps(asdict(run)))


def _difference(before: dict[str, Any], after: dict[str, Any]) -> str:
    names = [name for name in ("model", "dataset", "method", "lora", "training") if before.get(name) != after.get(name)]
    return ", ".join(f"spec.{name}" for name in names or ["output.save"]) + " differs"
