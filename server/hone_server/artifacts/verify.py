"""Verify artifacts before an engine loads them: files by their digests, adapters by what engines accept.

Used by the adapter sidecar and its init container, for engines that don't read manifests. Does not import torch.
"""

import json
import time
from pathlib import Path

from hone_api import layout
from hone_api.artifacts.adapter_config import ADAPTER_CONFIG, read_adapter_config
from hone_api.artifacts.adapter_rules import fits_revision, list_refused_settings
from hone_api.artifacts.manifest import ArtifactManifest
from hone_api.artifacts.proof import Proof, find_proof
from hone_api.containers import LINKS_PROGRAM
from hone_api.io.terminal import print_line
from hone_api.reasons import ADAPTER_MISMATCH, ARTIFACT_CORRUPT, ARTIFACT_MISSING, HoneError

RANK_FLAG = "--max-lora-rank"


def verify_adapter(
    name: str, root: Path, digest: str | None, base: str | None, revision: str | None
) -> tuple[Path, str | None]:
    """Return the folder with adapter_config.json, and the artifact's digest, after verifying every file.

    Raises HoneError.
    """
    folder, manifest = _verify_adapter_files(name, root, digest)
    if manifest is None:
        return folder, None
    require_matching_base(name, manifest, base, revision)
    return folder, manifest.digest


def verify_model(root: Path, digest: str | None) -> Path:
    proof = _verify_files(root, digest)
    if proof is None:
        if (root / "config.json").is_file():
            return root
        remedy = "Check spec.model; of a FineTuneJob's adapter, that the base model is still in the cache."
        raise HoneError(ARTIFACT_MISSING, f"{root} has neither {layout.MANIFEST} nor config.json", remedy=remedy)
    if proof.model_folder is None:
        remedy = "Name its base in spec.model, and it in spec.adapters."
        raise HoneError(ARTIFACT_MISSING, f"{root} holds an adapter, and no model", remedy=remedy)
    return proof.model_folder


def _verify_adapter_files(name: str, root: Path, digest: str | None) -> tuple[Path, ArtifactManifest | None]:
    proof = _verify_files(root, digest)
    if proof is None:
        if (root / ADAPTER_CONFIG).is_file():
            return root, None
        message = f"Adapter {name}: {root} has neither {layout.MANIFEST} nor {ADAPTER_CONFIG}"
        raise HoneError(ARTIFACT_MISSING, message)
    if not proof.has_adapter:
        raise HoneError(ADAPTER_MISMATCH, f"Adapter {name}: {root} holds a {proof.manifest.kind}, not an adapter")
    return proof.root / layout.ADAPTER, proof.manifest


def _verify_files(root: Path, digest: str | None) -> Proof | None:
    """Return the artifact after comparing its files with the manifest; None if it has no manifest and needs none.

    Raises HoneError ArtifactMissing or ArtifactCorrupt.
    """
    proof = find_proof(root)
    if proof is None:
        if digest:
            raise HoneError(ARTIFACT_MISSING, f"{root} should have digest {digest}, and no {layout.MANIFEST} is there")
        return None
    manifest = proof.manifest
    if digest and manifest.digest != digest:
        raise HoneError(ARTIFACT_CORRUPT, f"{root} should have digest {digest}, and its manifest has {manifest.digest}")
    begin = time.monotonic()
    proof.check()
    size = sum(file.size for path, file in manifest.files.items() if path.startswith(proof.part))
    seconds = time.monotonic() - begin
    print_line(f"{LINKS_PROGRAM}: {root} is {manifest.digest}: {size} bytes read in {seconds:.2f} s")
    return proof


def require_matching_base(name: str, manifest: ArtifactManifest, base: str | None, revision: str | None) -> None:
    """Raise HoneError AdapterMismatch when the adapter was trained on another hub model, or commit, than is served.

    Of a base model on a claim only the path in training is known, which may differ here, so it is not compared.
    """
    trained = manifest.base_model
    if base and trained.name and trained.name != base:
        message = f"Adapter {name} was trained on {trained.name}, and the service's model is {base}"
        raise HoneError(ADAPTER_MISMATCH, message)
    if base and trained.name and not fits_revision(trained.revision, revision):
        message = f"Adapter {name} was trained on {base} at {trained.revision}, and {revision} is served"
        raise HoneError(ADAPTER_MISMATCH, message)


def require_loadable_kind(name: str, folder: Path, max_rank: int | None) -> None:
    """Raise HoneError AdapterMismatch for what vLLM, SGLang and TGI would refuse after their start."""
    config = read_adapter_config(folder)
    refused = list_refused_settings(
        peft_type=config.peft_type,
        use_dora=config.use_dora,
        modules_to_save=config.modules_to_save,
        bias=config.bias,
    )
    for field in refused:
        found = json.dumps(getattr(config, field))
        remedy = "Serve the merged model, or set spec.engine: embedded."
        raise HoneError(
            ADAPTER_MISMATCH, f"Adapter {name} has {field} {found}, which the engine refuses", remedy=remedy
        )
    rank = config.largest_rank
    if max_rank and rank > max_rank:
        message = f"Adapter {name} has rank {rank}, and the engine is started for ranks up to {max_rank}"
        remedy = f"Add {RANK_FLAG} and a rank that the engine takes to spec.extraArgs, or serve the merged model."
        raise HoneError(ADAPTER_MISMATCH, message, remedy=remedy)
