"""The artifact: the adapter, the merged model or the fully trained model, and manifest.json as the last file.

Each folder is written under a temporary name, flushed, checked, and renamed, so that it is complete or absent. A merged
model is compared with base plus adapter (`models.merge_proof`) before it appears. `pipeline` calls this after training.
"""

import logging
import math
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hone_api.artifacts.manifest import (
    ArtifactKind,
    ArtifactManifest,
    BaseConfig,
    BaseModelReference,
    compute_files_digest,
    describe_files,
    list_folders,
)
from hone_api.finetunejobs.spec import FineTuneJob, FineTuneJobSpec
from hone_api.io.durable_files import flush_to_disk, flush_tree, remove_path
from hone_api.layout import ADAPTER, MERGED, MODEL
from peft import PeftModel, get_peft_model_state_dict
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hone_trainer.models.lora import add_adapter, merge_adapter
from hone_trainer.models.merge_proof import Comparison, compare_with
from hone_trainer.models.saved_config import copy_tokens

log = logging.getLogger(__name__)

# Small enough that the files are hashed in parallel, each on a core of its own.
SHARD_SIZE = "2GB"
PACKAGES = ("hone", "torch", "transformers", "trl", "peft", "datasets", "accelerate")


def get_artifact_kind(spec: FineTuneJobSpec) -> ArtifactKind:
    """Return the kind of artifact that the spec requests."""
    return MODEL if spec.method == "full" else spec.output.save or ADAPTER  # type: ignore[return-value]


def save_models(
    root: Path,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    kind: ArtifactKind,
    card: Callable[[str], str],
    load_base: Callable[[], PreTrainedModel],
    weights: dict[str, Any] | None = None,
    shard_size: str = SHARD_SIZE,
    *,
    trust_remote_code: bool = False,
    warn: Callable[[str], None] = log.warning,
) -> None:
    """Write the folders of the kind, each complete or absent.

    The adapter comes first, since merging changes `model`. `card` makes the model card of a folder; `load_base` loads
    the base that a quantized model was made from; `weights` are those of a sharded model. Raises HoneError
    MergeMismatch.
    """
    for name in list_folders(kind):
        check = None
        if name == MERGED and isinstance(model, PeftModel):
            safely = weights is not None or getattr(model, "is_loaded_in_4bit", False)
            adapted = _attach_to_base(model, load_base(), weights) if safely else model
            check = partial(check_merged, compare_with(adapted), trust_remote_code, warn)
            model, weights = merge_adapter(adapted, safely=safely), None
        save_model(root / name, model, tokenizer, card(name), weights, shard_size, check)


def check_merged(
    comparison: Comparison | str, trust_remote_code: bool, warn: Callable[[str], None], folder: Path
) -> None:
    """Compare a merged model in a folder with base plus adapter. Raises HoneError MergeMismatch."""
    problem = comparison if isinstance(comparison, str) else comparison.check(folder, trust_remote_code)
    if problem:
        warn(problem)


def make_manifest(
    root: Path,
    job: FineTuneJob,
    base: BaseModelReference,
    base_config: BaseConfig,
    fingerprint: str,
    metrics: dict[str, float],
    parameters: dict[str, int],
) -> ArtifactManifest:
    """Describe what save_models wrote, with the digest of every file."""
    kind = get_artifact_kind(job.spec)
    files = describe_files(root, list_folders(kind))
    return ArtifactManifest(
        kind=kind,
        job=job.name,
        digest=compute_files_digest(files),
        base_model=base,
        base_config=base_config,
        dataset_fingerprint=fingerprint,
        files=files,
        # JSON has no infinities and NaNs
        metrics={name: value for name, value in metrics.items() if math.isfinite(value)},
        parameters=parameters,
        versions={package: version(package) for package in PACKAGES},
        spec=job.spec.drop_unpublished(),
    )


def _attach_to_base(model: PeftModel, base: PreTrainedModel, weights: dict[str, Any] | None) -> PeftModel:
    """Return the adapter on the unquantized base, with the special tokens that training has decided on.

    Merged into 4-bit weights, the sum would be rounded to 4 bits again, and much of the training would be lost.
    """
    learned = {name: tensor.cpu() for name, tensor in get_peft_model_state_dict(model, state_dict=weights).items()}
    trained: Any = model.get_base_model()
    copy_tokens(trained.config, base.config)
    base.generation_config = trained.generation_config
    return add_adapter(base, model.peft_config["default"], learned)


def save_model(
    folder: Path,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    card: str,
    weights: dict[str, Any] | None = None,
    shard_size: str = SHARD_SIZE,
    check: Callable[[Path], None] | None = None,
) -> None:
    """Write a model, its tokenizer and its card to a folder that appears only when it is complete and `check` accepts
    it.
    """
    temporary = folder.with_name(f".{folder.name}.tmp")
    remove_path(temporary)
    try:
        if isinstance(model, PreTrainedModel):
            model.save_pretrained(temporary, state_dict=weights, max_shard_size=shard_size)
        else:
            model.save_pretrained(temporary, state_dict=weights)
        tokenizer.save_pretrained(temporary)
        (temporary / "README.md").write_text(card, encoding="utf-8")
        flush_tree(temporary)
        if check:
            check(temporary)
    except BaseException:
        remove_path(temporary)
        raise
    remove_path(folder)
    temporary.rename(folder)
    flush_to_disk(folder.parent)
