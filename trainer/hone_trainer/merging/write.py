"""Merge an adapter into the unquantized base model that it was trained on, and save the result.

Input is the adapter from `source`; output is the folder of the merged model, with tokenizer and model card. The saved
model is compared with base plus adapter (`models.merge_proof`).
"""

import os
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from hone_api.artifacts.proof import prove
from hone_api.common import HubName
from hone_api.io.terminal import print_line
from hone_api.reasons import (
    ARTIFACT_CORRUPT,
    INTERNAL_ERROR,
    INVALID_SPEC,
    MODEL_INVALID,
    MODEL_NOT_FOUND,
    HoneError,
    Reason,
)
from pydantic import TypeAdapter, ValidationError
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_utils import align_special_tokens

from hone_trainer.inputs import hub
from hone_trainer.merging.source import NAME_THE_BASE, MergeSource
from hone_trainer.models import lora, weight_files
from hone_trainer.models.merge_proof import compare_with
from hone_trainer.models.quantization import get_quantization_method
from hone_trainer.runtime.errors import make_hub_error
from hone_trainer.runtime.library_logging import silence_libraries
from hone_trainer.runtime.options import MergeOptions
from hone_trainer.storage.artifact import check_merged, save_model

# Characters shown of an invalid name, which has any length.
LONGEST_SHOWN = 200


def write_merged_model(adapter: MergeSource, options: MergeOptions) -> None:
    """Load the base, merge, and save. Raises HoneError as command.merge does."""
    if not options.verbose:
        silence_libraries()
    out = options.out
    config, learned = lora.load_files(adapter.folder)
    own = load_own_tokenizer(adapter, options.trust_remote_code)
    base, tokenizer, commit = load_base(adapter, options, own)
    adapted = lora.add_adapter(base, config, learned)
    comparison = compare_with(adapted)
    merged = lora.merge_adapter(adapted)
    out.parent.mkdir(parents=True, exist_ok=True)
    readme = make_card(adapter, commit, str(merged.dtype).removeprefix("torch."))
    check = partial(check_merged, comparison, options.trust_remote_code, print_line)
    save_model(out, merged, tokenizer, readme, check=check)


def load_own_tokenizer(adapter: MergeSource, trust: bool) -> PreTrainedTokenizerBase | None:
    """Load the adapter's tokenizer; None: it has none. Raises HoneError ArtifactCorrupt, and InvalidSpec for code."""
    folder = adapter.folder.absolute()
    if not (folder / "tokenizer_config.json").is_file():
        return None
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust)
    except Exception as error:
        raise _make_load_error(error, adapter, trust, ARTIFACT_CORRUPT, f"The tokenizer in {adapter.folder}") from error


def load_base(
    adapter: MergeSource, options: MergeOptions, own: PreTrainedTokenizerBase | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, str | None]:
    """Load the base model and the adapter's tokenizer, else the base's; return the base's commit when it is on the hub.

    Raises HoneError ModelNotFound, ModelInvalid, ArtifactCorrupt, HubUnauthorized, HubUnreachable, and InvalidSpec when
    a model brings code that `options` do not allow.
    """
    dtype, trust = options.dtype, options.trust_remote_code
    location, is_folder = _locate_base(adapter.base)
    if is_folder:
        prove(Path(location))
    try:
        commit = None if is_folder else hub.resolve_commit("model", location, adapter.revision or "main")
        common: dict[str, Any] = {"revision": commit or "main", "trust_remote_code": trust}
        if how := get_quantization_method(AutoConfig.from_pretrained(location, **common)):
            raise HoneError(
                MODEL_INVALID,
                f"The base model is {adapter.base}, which is quantized ({how}): merged into it, much of what was "
                "learned would be lost",
                remedy="Name the model that it was made from, in 16 bits: --base FOLDER or NAME.",
            )
        kind: Any = dtype if dtype == "auto" else getattr(torch, dtype)
        base = weight_files.load_causal_lm(location, f"The base model is {adapter.base}", dtype=kind, **common)
        tokenizer = own or AutoTokenizer.from_pretrained(location, **common)
        # As training does: the adapter may end its answers with another token than the base.
        align_special_tokens(base, tokenizer)  # type: ignore[no-untyped-call]
    except HoneError as error:
        raise _rephrase_failure(error) from error
    except Exception as error:
        raise _make_load_error(
            error, adapter, trust, MODEL_INVALID, f"The base model is {adapter.base}, which"
        ) from error
    return base, tokenizer, commit


def _locate_base(base: str) -> tuple[str, bool]:
    """Return where to load a base model from, and whether that is a folder: its absolute path, or a name on the hub.

    Raises HoneError ModelNotFound when it is neither, and ModelInvalid for a folder with an adapter.
    """
    if not os.path.isdir(base):
        try:
            name = TypeAdapter(HubName).validate_python(base)
        except ValidationError:
            name = ""
        if name and not os.path.lexists(base):
            return name, False
        found = f"The base model is {base[:LONGEST_SHOWN]}, which is no folder{'' if name else ' and no hub name'}"
        raise HoneError(MODEL_NOT_FOUND, found, remedy=NAME_THE_BASE)
    weight_files.refuse_adapter(os.path.abspath(base), f"The base model is {base}", None)
    if not os.path.isfile(os.path.join(base, "config.json")):
        raise HoneError(MODEL_NOT_FOUND, f"The base model is {base}, which has no config.json", remedy=NAME_THE_BASE)
    return os.path.abspath(base), True


def make_card(adapter: MergeSource, commit: str | None, dtype: str) -> str:
    """Return README.md of the merged model, with the front matter that the hub reads."""
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


def _rephrase_failure(error: HoneError) -> HoneError:
    """Return the failure phrased for the command line, where there is no spec."""
    message = error.message.replace("spec.model.name is", "The base model is")
    message = message.replace("spec.model.revision is", "The base model's revision is")
    remedy = NAME_THE_BASE if error.remedy == error.reason.remedy else error.remedy
    return HoneError(error.reason, message, remedy=remedy)


def _make_load_error(error: Exception, adapter: MergeSource, trust: bool, reason: Reason, what: str) -> HoneError:
    """Return the failure that an exception means while the base model, or the adapter's tokenizer, is loaded."""
    if "trust_remote_code" in str(error) and not trust:
        message = f"The base model is {adapter.base}, and it or the adapter's tokenizer brings its own code"
        return HoneError(INVALID_SPEC, message, remedy="Read that code, and add --trust-remote-code if you trust it.")
    found = make_hub_error(error, "model", adapter.base, adapter.revision or "main")
    if found.reason is not INTERNAL_ERROR:
        return _rephrase_failure(found)
    remedy = NAME_THE_BASE if reason is MODEL_INVALID else None
    return HoneError(reason, f"{what} can't be loaded: {_describe_error(error)}", remedy=remedy)


def _describe_error(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
