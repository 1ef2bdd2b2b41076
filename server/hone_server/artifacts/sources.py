"""Find what is to be served, from the command line and the artifacts' manifests, and verify its digests.

In: the arguments of hone-server. Out: `ModelSources`, the weights to load and the list of models, for
weights/loader.py. Does not import torch.
"""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hone_api import layout
from hone_api.artifacts.adapter_config import ADAPTER_CONFIG, read_adapter_config
from hone_api.artifacts.proof import Proof, find_proof
from hone_api.reasons import (
    ADAPTER_MISMATCH,
    ARTIFACT_CORRUPT,
    ARTIFACT_MISSING,
    INVALID_SPEC,
    MODEL_NOT_FOUND,
    HoneError,
)

from hone_server.artifacts.verify import require_matching_base

log = logging.getLogger("hone_server")

ModelKind = Literal["base", "adapter", "merged", "model"]


@dataclass(frozen=True)
class ModelEntry:
    """One entry of /v1/models.

    folder: an adapter's folder; None for the other kinds, which are the weights themselves. root: what the user named,
    a path or a name on the hub.
    """

    name: str
    kind: ModelKind
    root: str
    parent: str | None = None
    digest: str | None = None
    folder: Path | None = None


@dataclass(frozen=True)
class ModelSources:
    """The weights to load (a folder or a hub name), and the models made from them; that of the weights is the first."""

    weights_source: str
    revision: str | None
    cache_folder: Path | None  # HF_HOME, unless the environment has one
    entries: list[ModelEntry]


def find_model_sources(
    model: str,
    *,
    name: str | None,
    adapters: Mapping[str, Path],
    expected: Mapping[str, str],
    claims: Mapping[str, Path],
    revision: str | None = None,
) -> ModelSources:
    """Resolve the command line. Raises HoneError naming what is missing, corrupt or contradictory."""
    main_model = _find_main_model(model, name, claims, revision)
    root = main_model.entries[0]
    models = [
        *main_model.entries,
        *(find_adapter_entry(alias, folder, root.name, main_model) for alias, folder in adapters.items()),
    ]
    names = [entry.name for entry in models]
    for twice in {one for one in names if names.count(one) > 1}:
        raise HoneError(INVALID_SPEC, f"two models are called {twice!r}", remedy="Give one another name.")
    _check_expected_digests(expected, models)
    return ModelSources(main_model.weights_source, main_model.revision, main_model.cache_folder, models)


def _find_main_model(model: str, name: str | None, claims: Mapping[str, Path], revision: str | None) -> ModelSources:
    folder = Path(model).absolute()  # no library then takes it for a name on the hub
    if revision and folder.exists():
        raise HoneError(INVALID_SPEC, f"{model} is a folder, and has no revision {revision!r}")
    if proof := _verify_folder(folder):
        return _find_artifact_model(proof, model, name, claims)
    if (folder / "config.json").is_file():
        return ModelSources(str(folder), None, None, [ModelEntry(name or folder.resolve().name, "base", model)])
    if folder.exists() or model.startswith(("/", ".", "~")):
        raise HoneError(ARTIFACT_MISSING, f"{model} has neither {layout.MANIFEST} nor config.json")
    return ModelSources(model, revision, None, [ModelEntry(name or model, "base", model)])


def _find_artifact_model(proof: Proof, given: str, name: str | None, claims: Mapping[str, Path]) -> ModelSources:
    root, manifest = proof.root, proof.manifest
    name = name or manifest.job
    if not proof.has_adapter:
        assert proof.model_folder is not None
        kind: ModelKind = "merged" if proof.model_folder.name == layout.MERGED else "model"
        return ModelSources(
            str(proof.model_folder), None, None, [ModelEntry(name, kind, given, digest=manifest.digest)]
        )
    base = manifest.base_model
    base_name = layout.choose_base_model_name(base.name, base.claim, base.path or base.uri)
    adapter = ModelEntry(name, "adapter", given, base_name, manifest.digest, root / layout.ADAPTER)
    if base.name:
        models = [ModelEntry(base_name, "base", base.name), adapter]
        return ModelSources(base.name, base.revision, root / layout.CACHE, models)
    trained_on = _find_training_base(root / layout.ADAPTER)
    if base.claim not in claims and not claims and trained_on:
        log.info("the base model is in %s, where it was in training", trained_on)
        _verify_folder(Path(trained_on))
        return ModelSources(trained_on, None, None, [ModelEntry(base_name, "base", trained_on), adapter])
    if base.claim is None or base.claim not in claims:
        found = ", ".join(sorted(claims)) or "none"
        message = f"the base model is on claim {base.claim!r}, and the claims given are: {found}"
        raise HoneError(MODEL_NOT_FOUND, message, remedy=f"Give its folder with --claim {base.claim}=DIR.")
    weights = str((claims[base.claim] / (base.path or "")).absolute())
    _verify_folder(Path(weights))
    return ModelSources(weights, None, None, [ModelEntry(base_name, "base", weights), adapter])


def _find_training_base(adapter: Path) -> str | None:
    """Return the folder that an adapter's configuration names as its base model, if it is here, as hone merge does."""
    if not (adapter / ADAPTER_CONFIG).is_file():
        return None
    named = read_adapter_config(adapter).base_model_name_or_path
    return named if named and Path(named).is_absolute() and (Path(named) / "config.json").is_file() else None


def find_adapter_entry(name: str, folder: Path, parent: str, main_model: ModelSources) -> ModelEntry:
    """Return the adapter in a folder: an artifact's tree, the adapter in one (as the sidecar links it), or PEFT's
    files.

    Raises HoneError ArtifactMissing, ArtifactCorrupt or AdapterMismatch.
    """
    if proof := find_proof(folder):
        root, manifest = proof.root, proof.manifest
        if not proof.has_adapter:
            raise HoneError(ADAPTER_MISMATCH, f"adapter {name!r}: {folder} holds a {manifest.kind}, not an adapter")
        _verify_artifact(Proof(root, manifest, layout.ADAPTER))
        if not Path(main_model.weights_source).exists():
            require_matching_base(name, manifest, main_model.weights_source, main_model.revision)
        return ModelEntry(name, "adapter", str(folder), parent, manifest.digest, (root / layout.ADAPTER).absolute())
    if (folder / ADAPTER_CONFIG).is_file():
        return ModelEntry(name, "adapter", str(folder), parent, None, folder.absolute())
    message = f"adapter {name!r}: {folder} has neither {layout.MANIFEST} nor {ADAPTER_CONFIG}"
    raise HoneError(ARTIFACT_MISSING, message)


def _verify_folder(folder: Path) -> Proof | None:
    proof = find_proof(folder)
    if proof:
        _verify_artifact(proof)
    return proof


def _verify_artifact(proof: Proof) -> None:
    begin = time.monotonic()
    proof.check()
    log.info("%s is %s, read in %.2f s", proof.root / proof.part, proof.manifest.digest, time.monotonic() - begin)


def _check_expected_digests(expected: Mapping[str, str], models: list[ModelEntry]) -> None:
    digests = {entry.name: entry.digest for entry in models}
    for name, digest in expected.items():
        if name not in digests:
            remedy = f"The models are: {', '.join(digests)}."
            raise HoneError(INVALID_SPEC, f"--expect names {name!r}, which is not served", remedy=remedy)
        if digests[name] != digest:
            found = digests[name] or "none, because it has no manifest"
            raise HoneError(ARTIFACT_CORRUPT, f"{name!r} should have digest {digest}, and has {found}")
