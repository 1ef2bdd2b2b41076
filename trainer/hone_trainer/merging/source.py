"""The adapter to merge and its base model, found and verified without torch.

Input is the folder on the command line: an adapter, or the output of a job, whose digests are verified. Everything read
here may be written by others, so it never decides whether code may run. Next in the flow: `write`.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from hone_api.artifacts.adapter_config import ADAPTER_CONFIG, AdapterConfig, read_adapter_config
from hone_api.artifacts.manifest import ArtifactManifest
from hone_api.artifacts.proof import find_proof
from hone_api.layout import ADAPTER, CACHE, MANIFEST
from hone_api.reasons import ARTIFACT_MISSING, INVALID_SPEC, MODEL_NOT_FOUND, HoneError

NAME_THE_BASE = "Name the base model with --base: a folder, or a name on the hub (HF_TOKEN is used for a gated one)."


@dataclass(frozen=True)
class MergeSource:
    """An adapter and its base model: a folder, or a hub name with its commit.

    `origin` is a phrase for the model card, `cache` the folder of its run's downloads. All of this is untrusted: it
    must not decide whether code may run.
    """

    folder: Path
    base: str
    revision: str | None
    origin: str
    cache: Path | None = None


def find_adapter(place: Path, base: str | None) -> MergeSource:
    """Return the adapter in a folder or an artifact tree, whose digests are verified; `base` overrides its base model.

    Raises HoneError ArtifactMissing, ArtifactCorrupt, InvalidSpec, ModelNotFound.
    """
    if proof := find_proof(place):
        if not proof.has_adapter:
            raise HoneError(
                INVALID_SPEC,
                f"ADAPTER is {place}, which holds a {proof.part or proof.manifest.kind} model and no adapter",
                remedy="It needs no merging: serve it as it is.",
            )
        proof.check()
        return _make_artifact_source(proof.root, proof.manifest, base)
    if not os.path.isfile(place / ADAPTER_CONFIG):  # also False for a path that is too long
        raise HoneError(
            ARTIFACT_MISSING,
            f"ADAPTER is {place}, which has neither {MANIFEST} nor {ADAPTER_CONFIG}",
            remedy="Name the folder of an adapter, or the output folder of a job.",
        )
    config = _read_config(place)
    revision = None if base else config.revision
    return MergeSource(place, base or _find_base(config, place), revision, f"the adapter in `{place.resolve().name}`")


def _make_artifact_source(root: Path, manifest: ArtifactManifest, base: str | None) -> MergeSource:
    origin = f"the adapter of FineTuneJob {manifest.job} (artifact `{manifest.digest}`)"
    folder = root / ADAPTER
    config = _read_config(folder)
    cache = root / CACHE if (root / CACHE).is_dir() else None
    if base:
        return MergeSource(folder, base, None, origin, cache)
    known = manifest.base_model
    if known.name:
        return MergeSource(folder, known.name, known.revision, origin, cache)
    trained_on = _find_base(config, folder)
    if not (Path(trained_on) / "config.json").is_file():
        place = known.uri or f"on claim {known.claim}, path {known.path or ''!r}"
        raise HoneError(
            MODEL_NOT_FOUND,
            f"The base model is {place}, which was {trained_on} in training and is not here",
            remedy="Give its folder: --base FOLDER.",
        )
    return MergeSource(folder, trained_on, None, origin, cache)


def _read_config(folder: Path) -> AdapterConfig:
    config = read_adapter_config(folder)
    if config.peft_type != "LORA":
        raise HoneError(
            INVALID_SPEC,
            f"ADAPTER is {folder}, of the kind {config.peft_type}, and only LoRA is merged",
            remedy="Merge it with PEFT itself.",
        )
    if config.megatron_config:  # PEFT would import a module that the file names
        raise HoneError(
            INVALID_SPEC,
            f"ADAPTER is {folder}, whose {ADAPTER_CONFIG} has megatron_config",
            remedy="Remove that field if the adapter is for a model of transformers; other models are not merged.",
        )
    return config


def _find_base(config: AdapterConfig, folder: Path) -> str:
    found = config.base_model_name_or_path
    if not found:
        raise HoneError(MODEL_NOT_FOUND, f"{folder / ADAPTER_CONFIG} names no base model", remedy=NAME_THE_BASE)
    return found
