"""The base model: where it is, which commit it is, and loading it with its tokenizer."""

from dataclasses import dataclass
from typing import Any

import torch
from hone_api.artifact import BaseModelReference
from hone_api.finetunejob import BaseModelSource
from hone_api.reasons import INVALID_SPEC, MODEL_NOT_FOUND, HoneError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from hone_trainer import hub
from hone_trainer.manifest import Inputs


@dataclass(frozen=True)
class BaseModel:
    """What from_pretrained takes: a hub name with its commit, or a folder."""

    location: str
    commit: str | None
    offline: bool
    reference: BaseModelReference


def find(source: BaseModelSource, inputs: Inputs, pinned: str | None) -> BaseModel:
    """Resolve the model; `pinned` is the commit that an earlier start of this run resolved.

    Raises HoneError ModelNotFound, HubUnauthorized, HubUnreachable, InvalidSpec.
    """
    if source.claim:
        folder = inputs.claim_path(source.claim, "spec.model.claim", MODEL_NOT_FOUND)
        if not (folder / "config.json").is_file():
            raise HoneError(
                MODEL_NOT_FOUND, f"spec.model.claim.path is {source.claim.path!r}, and {folder} has no config.json"
            )
        reference = BaseModelReference(claim=source.claim.name, path=source.claim.path)
        return BaseModel(str(folder), None, True, reference)
    if not source.name:
        raise HoneError(INVALID_SPEC, "spec.model names no model", remedy="Set exactly one of name and claim.")
    found = hub.resolve("model", source.name, pinned or source.revision or "main")
    reference = BaseModelReference(name=source.name, revision=found.commit)
    return BaseModel(source.name, found.commit, found.offline, reference)


def load(base: BaseModel, source: BaseModelSource) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load weights and tokenizer, downloading what the cache lacks."""
    common: dict[str, Any] = {
        "revision": base.commit or "main",
        "local_files_only": base.offline,
        "trust_remote_code": source.trust_remote_code,
    }
    dtype: Any = source.dtype if source.dtype == "auto" else getattr(torch, source.dtype)
    tokenizer = AutoTokenizer.from_pretrained(base.location, **common)
    model = AutoModelForCausalLM.from_pretrained(base.location, dtype=dtype, **common)
    return model, tokenizer
