"""An adapter and the unquantized base model that it was trained on become one model."""

from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from hone_api.proof import prove
from hone_api.reasons import (
    ARTIFACT_CORRUPT,
    INTERNAL_ERROR,
    INVALID_SPEC,
    MODEL_INVALID,
    MODEL_NOT_FOUND,
    HoneError,
)
from peft import PeftConfig
from peft.utils import load_peft_weights
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_utils import align_special_tokens

from hone_trainer import adapters, hub, weights
from hone_trainer.comparison import compare_with
from hone_trainer.errors import hub_error
from hone_trainer.merge import NAME_THE_BASE, Adapter, say
from hone_trainer.options import MergeOptions
from hone_trainer.quantize import quantized
from hone_trainer.quiet import quiet
from hone_trainer.save import check_merged, save_model
from hone_trainer.weights import LOAD_ERRORS


def write(adapter: Adapter, options: MergeOptions) -> None:
    """Load the base, merge, and save. Raises HoneError as merge.merge does."""
    if not options.verbose:
        quiet()
    out = options.out
    base, tokenizer, commit = load_base(adapter, options)
    try:
        config, weights = PeftConfig.from_pretrained(str(adapter.folder)), load_peft_weights(str(adapter.folder), "cpu")
    except (*LOAD_ERRORS, *adapters.PEFT_ERRORS) as error:
        raise HoneError(ARTIFACT_CORRUPT, f"The adapter {adapter.folder} can't be read: {_line(error)}") from error
    # As training does: the adapter may end its answers with another token than the base.
    align_special_tokens(base, tokenizer)  # type: ignore[no-untyped-call]
    adapted = adapters.adapt(base, config, weights)
    comparison = compare_with(adapted)
    merged = adapters.merge(adapted)
    out.parent.mkdir(parents=True, exist_ok=True)
    readme = card(adapter, commit, str(merged.dtype).removeprefix("torch."))
    check = partial(check_merged, comparison, options.trust_remote_code, say)
    save_model(out, merged, tokenizer, readme, check=check)


def load_base(adapter: Adapter, options: MergeOptions) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, str | None]:
    """The base model, the adapter's tokenizer or else the base's, and the base's commit when it is on the hub.

    Raises HoneError ModelNotFound, ModelInvalid, ArtifactCorrupt, HubUnauthorized, HubUnreachable, and InvalidSpec when
    a model brings code that `options` do not allow.
    """
    dtype, trust = options.dtype, options.trust_remote_code
    folder = Path(adapter.base)
    if (not folder.exists() and adapter.base.startswith(("/", ".", "~"))) or folder.is_file():
        raise HoneError(MODEL_NOT_FOUND, f"The base model is {adapter.base}, which is no folder", remedy=NAME_THE_BASE)
    if folder.is_dir():
        weights.refuse_adapter(str(folder), f"The base model is {folder}", None)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise HoneError(MODEL_NOT_FOUND, f"The base model is {folder}, which has no config.json", remedy=NAME_THE_BASE)
    if folder.is_dir():
        prove(folder)
    revision = adapter.revision or "main"
    try:
        commit = None if folder.is_dir() else hub.resolve("model", adapter.base, revision)
        common: dict[str, Any] = {"revision": commit or "main", "trust_remote_code": trust}
        if how := quantized(AutoConfig.from_pretrained(adapter.base, **common)):
            raise HoneError(
                MODEL_INVALID,
                f"The base model is {adapter.base}, which is quantized ({how}): merged into it, much of what was "
                "learned would be lost",
                remedy="Name the model that it was made from, in 16 bits: --base FOLDER or NAME.",
            )
        kind: Any = dtype if dtype == "auto" else getattr(torch, dtype)
        base = weights.load(adapter.base, f"The base model is {adapter.base}", dtype=kind, **common)
        own = (adapter.folder / "tokenizer_config.json").is_file()
        tokenizer = (
            AutoTokenizer.from_pretrained(adapter.folder, trust_remote_code=trust)
            if own
            else AutoTokenizer.from_pretrained(adapter.base, **common)
        )
    except HoneError as error:
        raise _of_the_base(error) from error
    except LOAD_ERRORS as error:
        if "trust_remote_code" in str(error) and not trust:
            message = f"The base model is {adapter.base}, and it or the adapter's tokenizer brings its own code"
            remedy = "Read that code, and add --trust-remote-code if you trust it."
            raise HoneError(INVALID_SPEC, message, remedy=remedy) from error
        found = hub_error(error, "model", adapter.base, revision)
        if found.reason is not INTERNAL_ERROR:
            raise _of_the_base(found) from error
        message = f"The base model is {adapter.base}, which can't be loaded: {_line(error)}"
        raise HoneError(MODEL_INVALID, message, remedy=NAME_THE_BASE) from error
    return base, tokenizer, commit


def card(adapter: Adapter, commit: str | None, dtype: str) -> str:
    """README.md of the merged model, with the front matter that the hub reads."""
    matter: dict[str, object] = {"library_name": "transformers", "pipeline_tag": "text-generation", "tags": ["hone"]}
    if commit:
        matter["base_model"] = adapter.base
    return f"""---
{yaml.safe_dump(matter, sort_keys=False).strip()}
---

# {adapter.base.rstrip("/").rpartition("/")[2]}, merged

{adapter.base}{f" at commit {commit}" if commit else ""} with {adapter.origin} merged into it, in {dtype},
by Hone {version("hone")}. It loads with transformers as it is.
"""


def _of_the_base(error: HoneError) -> HoneError:
    """The failure in words of the command line, where there is no spec."""
    message = error.message.replace("spec.model.name is", "The base model is")
    message = message.replace("spec.model.revision is", "The base model's revision is")
    remedy = NAME_THE_BASE if error.remedy == error.reason.remedy else error.remedy
    return HoneError(error.reason, message, remedy=remedy)


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
