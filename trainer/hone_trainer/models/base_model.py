"""The base model: its location and commit, and loading it with its tokenizer.

A `BaseModel` names a folder or a commit on the hub; everything that reads the model goes through the functions here, so
that their failures name the field of the spec. `weight_files` loads the weights, `inputs.hub` resolves commits.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hone_api.artifacts.manifest import BaseModelReference
from hone_api.artifacts.proof import prove
from hone_api.finetunejobs.sources import BaseModelSource
from hone_api.finetunejobs.spec import FineTuneJobSpec
from hone_api.reasons import INTERNAL_ERROR, INVALID_SPEC, MODEL_INVALID, MODEL_NOT_FOUND, HoneError
from transformers import (
    AutoConfig,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hone_trainer.inputs import hub
from hone_trainer.inputs.disguised_files import find_pointers
from hone_trainer.inputs.manifest import JobInputs
from hone_trainer.inputs.model_files import TEXTS, list_files
from hone_trainer.models import quantization, remote_models, weight_files
from hone_trainer.models.weight_files import LOAD_ERRORS
from hone_trainer.remote.fetch import fetch
from hone_trainer.remote.locations import locate
from hone_trainer.runtime.errors import make_hub_error


@dataclass(frozen=True)
class BaseModel:
    """The model for from_pretrained: a hub name with its commit, or a folder.

    `digest` covers the files of a folder other than the weights; they decide how rows are tokenized.
    """

    location: str
    commit: str | None
    reference: BaseModelReference
    digest: str | None = None


def locate_base_model(
    source: BaseModelSource, inputs: JobInputs, pinned: str | None, *, needs_weights: bool = True
) -> BaseModel:
    """Resolve the model; `pinned` is the commit, or the revision of a URI, that an earlier start found.

    Raises HoneError ModelNotFound, ModelInvalid, ArtifactCorrupt, HubUnauthorized, HubUnreachable, InvalidSpec, and
    what `remote.fetch` raises.
    """
    if source.uri:
        choose = remote_models.choose_files if needs_weights else remote_models.choose_texts
        downloaded = fetch(locate("model", source, inputs), pinned, choose)
        folder, where = downloaded.folder, f"spec.model.uri is {source.uri}"
        weight_files.refuse_adapter(str(folder), where, None)
        if not (folder / "config.json").is_file():
            raise HoneError(MODEL_NOT_FOUND, f"{where}, and there is no config.json")
        prove(folder)
        reference = BaseModelReference(uri=source.uri, revision=downloaded.revision)
        return BaseModel(str(folder), None, reference, _digest(folder))
    if source.claim:
        folder = inputs.find_claim_path(source.claim, "spec.model.claim", MODEL_NOT_FOUND).absolute()
        weight_files.refuse_adapter(str(folder), f"spec.model.claim.path is {source.claim.path or ''!r}", None)
        if not (folder / "config.json").is_file():
            found = f"spec.model.claim.path is {source.claim.path or ''!r}, and {folder} has no config.json"
            raise HoneError(MODEL_NOT_FOUND, found)
        prove(folder)
        reference = BaseModelReference(claim=source.claim.name, path=source.claim.path)
        return BaseModel(str(folder), None, reference, _digest(folder))
    if not source.name:
        raise HoneError(INVALID_SPEC, "spec.model names no model", remedy="Set exactly one of name, claim, uri.")
    commit = pinned or hub.resolve_commit("model", source.name, source.revision or "main")
    return BaseModel(source.name, commit, BaseModelReference(name=source.name, revision=commit))


def load_tokenizer(base: BaseModel, source: BaseModelSource) -> PreTrainedTokenizerBase:
    """Load the tokenizer; download what the cache lacks.

    Raises HoneError ModelInvalid, InvalidSpec, HubUnauthorized, HubUnreachable.
    """
    try:
        return AutoTokenizer.from_pretrained(base.location, **_make_load_options(base, source))
    except LOAD_ERRORS as error:
        raise _make_refusal(error, base, source) from error


def load_model(base: BaseModel, spec: FineTuneJobSpec, attention: str | None = None) -> PreTrainedModel:
    """Load the weights as the method trains them; `attention` is the kernel, None: transformers' choice.

    Raises HoneError ModelInvalid, InvalidSpec, HubUnauthorized, HubUnreachable.
    """
    source = spec.model
    common = _make_load_options(base, source)
    dtype: Any = source.dtype if source.dtype == "auto" else getattr(torch, source.dtype)
    try:
        if spec.method == "qlora":
            common["quantization_config"] = quantization.make_nf4_config()
        if attention:
            common["attn_implementation"] = attention
        network = weight_files.load_causal_lm(base.location, _describe_place(base, source), dtype=dtype, **common)
    except LOAD_ERRORS as error:
        raise _make_refusal(error, base, source) from error
    _name_experts(network.config)
    quantization.keep_unpacked(network)
    return quantization.prepare_for_training(network) if spec.method == "qlora" else network


def check_weights(base: BaseModel, source: BaseModelSource, outline: PreTrainedModel) -> list[str]:
    """Check that the files of a local model can be loaded, without reading the weights; return warnings.

    `outline` is the model without weights.

    Raises HoneError ModelInvalid, InvalidSpec.
    """
    here = find_model_folder(base)
    if here is None:
        return []
    try:
        return weight_files.check_weight_files(outline, here, _describe_place(base, source))
    except LOAD_ERRORS as error:
        raise _make_refusal(error, base, source) from error


def load_config(base: BaseModel, source: BaseModelSource) -> PreTrainedConfig:
    """Load the model's config.json. Raises HoneError ModelInvalid, InvalidSpec, HubUnauthorized, HubUnreachable."""
    try:
        return AutoConfig.from_pretrained(base.location, **_make_load_options(base, source))  # type: ignore[no-any-return]
    except LOAD_ERRORS as error:
        raise _make_refusal(error, base, source) from error


def load_stop_tokens(base: BaseModel, source: BaseModelSource) -> set[int]:
    """Return the tokens that end the base model's generation, from its generation config or its config."""
    try:
        found: Any = GenerationConfig.from_pretrained(base.location, **_make_load_options(base, source))
    except LOAD_ERRORS:  # most models have no such file
        found = load_config(base, source).get_text_config()
    tokens = getattr(found, "eos_token_id", None)
    return {token for token in (tokens if isinstance(tokens, list) else [tokens]) if isinstance(token, int)}


def load_unquantized(base: BaseModel, source: BaseModelSource) -> PreTrainedModel:
    """Load the base model again, in the type it was saved in and into the host's memory, to merge an adapter into it.

    Raises HoneError ModelInvalid, HubUnauthorized, HubUnreachable.
    """
    try:
        return weight_files.load_causal_lm(
            base.location, _describe_place(base, source), dtype="auto", **_make_load_options(base, source)
        )
    except LOAD_ERRORS as error:
        raise _make_refusal(error, base, source) from error


def read_context_length(base: BaseModel, source: BaseModelSource) -> int | None:
    """Return how many tokens the model can read by its configuration; None when not given. Raises as `load_model`."""
    found = getattr(load_config(base, source).get_text_config(), "max_position_embeddings", None)
    return found if isinstance(found, int) and found > 0 else None


def find_model_folder(base: BaseModel) -> Path | None:
    """Return the folder of the model's files on this machine, if they are here."""
    return hub.find_cached_snapshot("model", base.location, base.commit) if base.commit else Path(base.location)


def download(base: BaseModel, source: BaseModelSource) -> None:
    """Download all files of a model on the hub into the cache. Raises HoneError HubUnauthorized, HubUnreachable."""
    if not base.commit:
        return
    hub.download_model(base.location, base.commit, source.revision or "main")


def is_local(base: BaseModel) -> bool:
    """Return whether the model's files are on this machine."""
    if not base.commit:
        return True
    folder = hub.find_cached_snapshot("model", base.location, base.commit)
    return folder is not None and any(any(folder.glob(weights)) for weights in ("*.safetensors", "*.bin"))


def _name_experts(config: PreTrainedConfig) -> None:
    """Let TRL's load-balancing loss find the number of experts, which it reads only as num_experts."""
    text: Any = config.get_text_config()
    other = next((name for name in ("num_local_experts", "n_routed_experts") if hasattr(text, name)), None)
    if other and not hasattr(text, "num_experts"):
        type(text).attribute_map = {**type(text).attribute_map, "num_experts": other}


def _make_load_options(base: BaseModel, source: BaseModelSource) -> dict[str, Any]:
    return {"revision": base.commit or "main", "trust_remote_code": source.trust_remote_code}


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in list_files(folder, TEXTS):
        digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return "sha256:" + digest.hexdigest()


def _make_refusal(error: Exception, base: BaseModel, source: BaseModelSource) -> HoneError:
    text = " ".join(str(error).split())
    if "trust_remote_code" in text and not source.trust_remote_code:
        return HoneError(
            INVALID_SPEC,
            f"spec.model.trustRemoteCode is false, and {source.name or base.location} brings its own code",
            remedy="Read that code, and set trustRemoteCode: true if you trust it.",
        )
    found = make_hub_error(error, "model", source.name or base.location, source.revision or "main")
    if found.reason is not INTERNAL_ERROR:
        return found
    if pointers := [] if base.commit else find_pointers(Path(base.location)):
        what = f"which can't be loaded: {', '.join(pointers)} there is a pointer of Git LFS and not the file itself"
        remedy = "Run `git lfs pull` where it was cloned, and copy the files again."
        return HoneError(MODEL_INVALID, f"{_describe_place(base, source)}, {what}", remedy=remedy)
    return HoneError(MODEL_INVALID, f"{_describe_place(base, source)}, which can't be loaded: {text}")


def _describe_place(base: BaseModel, source: BaseModelSource) -> str:
    if source.uri:
        return f"spec.model.uri is {source.uri}"
    return f"spec.model.name is {source.name}" if source.name else f"spec.model.claim.path is {base.location}"
