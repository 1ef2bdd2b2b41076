"""The weight files of a base model: load them, and check in advance that they fit its configuration.

transformers loads what it can: weights missing in the files become random, weights that nothing uses are dropped, and
an
adapter in the model's folder is added. Every loader of a base model therefore goes through `load_causal_lm`.
`check_weight_files` finds the same faults before a GPU is held: it reads the names and shapes of the weights, and has
transformers load them without their values, so that its renaming, tying and lists of exceptions apply.
"""

import copy
import re
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from hone_api.reasons import MODEL_INVALID, HoneError
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.modeling_utils import load_state_dict
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AutoHfQuantizer
from transformers.utils.peft_utils import ADAPTER_CONFIG_NAME, find_adapter_config_file

from hone_trainer.inputs.disguised_files import is_pointer
from hone_trainer.inputs.weight_index import find_weight_files
from hone_trainer.models.quantization import get_quantization_method

# Exceptions of transformers for a model that it can't load.
LOAD_ERRORS = (
    *(OSError, ValueError, KeyError, ImportError, EOFError),
    *(SafetensorError, StrictDataclassError, UnpicklingError),
)
# Weights that a model may leave unused: layers for speculative decoding, and buffers of older versions.
UNUSED = re.compile(r"(^|\.)mtp\.|nextn|inv_freq$|position_ids$|\.masked_bias$|\.(attn|attention)\.bias$")
OWN_CONFIG = "Use the config.json that belongs to these weights."
UNQUANTIZED = "Name the model that it was made from, in 16 bits"
# The number of names in a warning.
SHOWN = 3


def load_causal_lm(location: str, what: str, **options: Any) -> PreTrainedModel:
    """Load a causal language model with all its weights; `options` are those of from_pretrained.

    Messages begin with `what`, such as "spec.model.name is NAME". Raises HoneError ModelInvalid, and LOAD_ERRORS.
    """
    common = {name: options[name] for name in ("revision", "trust_remote_code") if name in options}
    refuse_adapter(location, what, options.get("revision"))
    config = AutoConfig.from_pretrained(location, **common)
    _check_quantization(config, what, has_device=True)
    options["ignore_mismatched_sizes"] = True  # they are refused below, with names and sizes
    try:
        found: Any = AutoModelForCausalLM.from_pretrained(location, output_loading_info=True, **options)
    except RuntimeError as error:
        if "conversion of the weights" not in str(error):
            raise
        message = f"{what}, whose weights can't be joined to those of its architecture: the log lists them"
        raise HoneError(MODEL_INVALID, message, remedy=OWN_CONFIG) from error
    _check_loaded(found[1], what)
    return found[0]  # type: ignore[no-any-return]


def check_weight_files(outline: PreTrainedModel, folder: Path, what: str) -> list[str]:
    """Raise HoneError ModelInvalid, or LOAD_ERRORS, for a model that `load_causal_lm` would refuse; return warnings.

    `outline` is the model without weights. The weights' values are not read. Models with code of their own are skipped:
    that
    code decides which files are read. For quantized models, names and shapes are not checked.
    """
    refuse_adapter(str(folder), what, None)
    config: Any = outline.config
    _check_quantization(config, what, has_device=torch.cuda.is_available())
    if outline.is_custom_code() or getattr(config, "transformers_weights", None) or type(config).extra_files:
        return []
    headers: dict[str, torch.Tensor] = {}
    for path in find_weight_files(folder, what):
        headers |= _read_header(path, what)
    if get_quantization_method(config):
        return []
    try:
        made: Any = type(outline)
        _, found = made.from_pretrained(
            None,
            config=config,
            state_dict=headers,
            device_map={"": "meta"},
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except LOAD_ERRORS:
        raise
    except Exception:  # not every model can be built from shapes alone; loading it will show
        return []
    _check_loaded(found, what)
    unused = sorted(name for name in found["unexpected_keys"] if not UNUSED.search(name))
    if not unused:
        return []
    names = ", ".join(unused[:SHOWN]) + (", …" if len(unused) > SHOWN else "")
    return [
        f"The files of the base model hold {len(unused)} weights that {type(outline).__name__} with its config.json "
        f"does not use: {names}. Check that config.json belongs to these files"
    ]


def refuse_adapter(location: str, what: str, revision: str | None) -> None:
    """Raise HoneError ModelInvalid for a model with an adapter in its folder, which transformers would add to it."""
    here = Path(location)
    if here.is_absolute() or here.is_dir():
        found = (here / ADAPTER_CONFIG_NAME).is_file()
    else:
        found = find_adapter_config_file(location, revision=revision) is not None
    if not found:
        return
    raise HoneError(
        MODEL_INVALID,
        f"{what}, which holds an adapter ({ADAPTER_CONFIG_NAME})",
        remedy="Merge it first: move the files of the adapter to a folder of their own, run `hone merge`, and name the "
        "merged model. To use the base model alone, remove adapter_config.json.",
    )


def find_not_finite(folder: Path) -> str | None:
    """Return the name of a weight in the files of a model that is NaN or infinite; None: all are finite."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (it is no dictionary)
                tensor = file.get_tensor(name)
                if tensor.is_floating_point() and not tensor.sum(dtype=torch.float32).isfinite():
                    return str(name)
    return None


def _read_header(path: Path, what: str) -> dict[str, torch.Tensor]:
    """Return the weights of a file without their values. Raises HoneError ModelInvalid for a file without weights."""
    if is_pointer(path):
        raise HoneError(
            MODEL_INVALID,
            f"{what}, whose {path.name} is a pointer of Git LFS and not the file itself",
            remedy="Run `git lfs pull` where it was cloned, and copy the file again.",
        )
    try:
        return load_state_dict(str(path), map_location="meta")
    except (*LOAD_ERRORS, RuntimeError) as error:
        raise HoneError(
            MODEL_INVALID, f"{what}, whose {path.name} can't be read: {_format_error_line(error)}"
        ) from error


def _check_loaded(found: dict[str, Any], what: str) -> None:
    if mismatched := sorted(found["mismatched_keys"]):
        name, has, expected = mismatched[0]
        more = f"; {len(mismatched) - 1} more differ" if len(mismatched) > 1 else ""
        raise HoneError(
            MODEL_INVALID,
            f"{what}, whose weights do not fit its config.json: {name} has the shape {list(has)} in the files, and "
            f"{list(expected)} by config.json{more}",
            remedy=OWN_CONFIG,
        )
    if missing := sorted(found["missing_keys"]):
        lacks = f"lack {len(missing)} weights, such as {missing[0]}: they would be random"
        raise HoneError(MODEL_INVALID, f"{what}, whose files {lacks}")


def _check_quantization(config: PreTrainedConfig, what: str, *, has_device: bool) -> None:
    """Raise HoneError ModelInvalid for quantized weights that can't be loaded; without a device, some are not found."""
    how = get_quantization_method(config)
    if how is None:
        return
    found: Any = config.quantization_config
    given: dict[str, Any] = copy.deepcopy(found if isinstance(found, dict) else found.to_dict())
    in_bits = given.get("load_in_8bit") or given.get("load_in_4bit")
    if not in_bits and given.get("quant_method") not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        raise HoneError(
            MODEL_INVALID,
            f"{what}, which is quantized in a way that transformers does not know ({how})",
            remedy=f"{UNQUANTIZED}.",
        )
    try:
        quantizer: Any = AutoHfQuantizer.from_config(given)
        quantizer.validate_environment(device_map=None, weights_only=True)
    except ImportError as error:
        if not has_device and "GPU" in str(error):
            return
        raise HoneError(
            MODEL_INVALID,
            f"{what}, which is quantized ({how}), and a package for that is missing: {_format_error_line(error)}",
            remedy=f"{UNQUANTIZED}, or add the package to the image of the trainer.",
        ) from error
    except Exception as error:
        if not has_device or not isinstance(error, RuntimeError | NotImplementedError):
            return  # the reason may be a missing GPU; loading shows other faults
        message = f"{what}, which is quantized ({how}) and can't be loaded on this machine: {_format_error_line(error)}"
        raise HoneError(MODEL_INVALID, message, remedy=f"{UNQUANTIZED}.") from error


def _format_error_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
