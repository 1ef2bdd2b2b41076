"""What is kept: the adapter, the merged model or the whole model, then manifest.json last."""

import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hone_api.artifact import (
    ArtifactKind,
    ArtifactManifest,
    BaseConfig,
    BaseModelReference,
    describe_files,
    digest_of,
    folders_of,
)
from hone_api.finetunejob import FineTuneJob, FineTuneJobSpec
from hone_api.layout import ADAPTER, MERGED, MODEL
from peft import PeftModel, get_peft_model_state_dict
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hone_trainer.adapters import merge_into
from hone_trainer.files import flush, flush_tree

SHARD_SIZE = "2GB"
"""Each file is hashed on a core of its own."""
PACKAGES = ("hone", "torch", "transformers", "trl", "peft", "datasets", "accelerate")


def kind_of(spec: FineTuneJobSpec) -> ArtifactKind:
    """What the spec asks to keep."""
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
) -> None:
    """Write the kind's folders, each whole or not at all. Merging changes `model`, so the adapter
    goes first. `card` makes the model card of a folder; `load_base` the base that a quantized model was made from.
    `weights` are those of a model that several processes share."""
    for name in folders_of(kind):
        if name == MERGED and isinstance(model, PeftModel):
            model, weights = _merged(model, load_base, weights), None
        save_model(root / name, model, tokenizer, card(name), weights, shard_size)


def manifest_of(
    root: Path,
    job: FineTuneJob,
    base: BaseModelReference,
    base_config: BaseConfig,
    fingerprint: str,
    metrics: dict[str, float],
    parameters: dict[str, int],
) -> ArtifactManifest:
    """Describe what save_models wrote, with the digest of every file."""
    kind = kind_of(job.spec)
    files = describe_files(root, folders_of(kind))
    return ArtifactManifest(
        kind=kind,
        job=job.name,
        digest=digest_of(files),
        base_model=base,
        base_config=base_config,
        dataset_fingerprint=fingerprint,
        files=files,
        metrics=metrics,
        parameters=parameters,
        versions={package: version(package) for package in PACKAGES},
        spec=job.spec.published(),
    )


def _merged(model: PeftModel, load_base: Callable[[], PreTrainedModel], weights: dict[str, Any] | None) -> Any:
    if weights is None and not getattr(model, "is_loaded_in_4bit", False):
        return model.merge_and_unload()
    # Merged into 4-bit weights, the sum would be rounded to 4 bits again, and much of what was learned be lost.
    learned = {name: tensor.cpu() for name, tensor in get_peft_model_state_dict(model, state_dict=weights).items()}
    return merge_into(load_base(), model.peft_config["default"], learned)


def save_model(
    folder: Path,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    card: str,
    weights: dict[str, Any] | None = None,
    shard_size: str = SHARD_SIZE,
) -> None:
    """Write a model, its tokenizer and its card into a folder that appears whole or not at all."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        if isinstance(model, PreTrainedModel):
            model.save_pretrained(temporary, state_dict=weights, max_shard_size=shard_size)
        else:
            model.save_pretrained(temporary, state_dict=weights)
        tokenizer.save_pretrained(temporary)
        (temporary / "README.md").write_text(card, encoding="utf-8")
        flush_tree(temporary)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
    flush(folder.parent)
