"""Load models from sources: the base once, and its adapters, unmerged where possible.

In: `ModelSources` of artifacts/sources.py. Out: the base with its tokenizer, and for each adapter its weights or a
merged model. What an unmerged adapter can't express (DoRA, saved modules, trained biases or embeddings) is merged into
a second model that shares every tensor with the base except those that the adapter changes. Such a model answers at
full speed, and has its own batch, key-value cache and thread. model_registry.py is next.
"""

import copy
import itertools
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hone_api.artifacts.adapter_config import read_adapter_config, require_adapter_weights
from hone_api.attention import choose_default_kernel
from hone_api.layout import EMBEDDED_CACHE_SHARE
from hone_api.reasons import (
    ADAPTER_MISMATCH,
    ARTIFACT_CORRUPT,
    HUB_UNAUTHORIZED,
    HUB_UNREACHABLE,
    MODEL_INVALID,
    MODEL_NOT_FOUND,
    MODEL_UNSUPPORTED,
    HoneError,
)
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar
from transformers.utils.peft_utils import find_adapter_config_file
from transformers.utils.quantization_config import QuantizationMethod

from hone_server.artifacts.sources import ModelEntry, ModelSources
from hone_server.hardware import has_bfloat16, measure_available_bytes
from hone_server.weights.architectures import refuse_unsupported_model
from hone_server.weights.batched_lora import LoraAdapter, LoraBatch, LoraLinear, LoraWeights, convert_linears
from hone_server.weights.fused_linear import FusedLinear, fuse_linears
from hone_server.weights.onednn_packing import is_prepacked, prepack_weights, unpack_weights


@dataclass(frozen=True)
class LoadedBase:
    """The weights that all models are served from. `lora_batch` is None when no adapter can stay unmerged."""

    model: Any
    tokenizer: Any
    lora_batch: LoraBatch | None


def load_base(sources: ModelSources, *, with_adapters: bool) -> LoadedBase:
    """Load the weights, ready for unmerged adapters if `with_adapters`. Raises HoneError."""
    disable_progress_bar()  # type: ignore[no-untyped-call]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, tokenizer = _load_weights_and_tokenizer(sources)
    model.to(device).eval().requires_grad_(False)
    copies = 1 if with_adapters else len(sources.entries)
    should_widen = device == "cpu" and should_compute_in_float32(
        model.dtype, copies * model.get_memory_footprint(), measure_available_bytes(), has_bfloat16()
    )
    if device == "cpu":
        mapped = list_storages(model)
        if should_widen:
            model.float()
        copy_mapped_tensors(model, mapped)
        fuse_linears(model)
    return LoadedBase(model, tokenizer, convert_linears(model) if with_adapters else None)


def list_storages(model: Any) -> set[int]:
    """Return the addresses of the memory, or of the mapped files, that hold the model's tensors."""
    tensors = itertools.chain(model.parameters(), model.buffers())
    return {tensor.untyped_storage().data_ptr() for tensor in tensors if not tensor.is_mkldnn}


def copy_mapped_tensors(model: Any, mapped: Container[int]) -> None:
    """Copy the tensors in these storages into memory, so that the files that they map are released.

    A change of a mapped file would change the answers, and truncating it would end the process.
    """
    copies: dict[Any, torch.Tensor] = {}

    def copy_tensor(tensor: torch.Tensor) -> torch.Tensor:
        key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.is_mkldnn or tensor.untyped_storage().data_ptr() not in mapped:
            return tensor
        if key not in copies:
            copies[key] = tensor.clone()
        return copies[key]

    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = copy_tensor(buffer)
    for parameter in model.parameters():
        parameter.data = copy_tensor(parameter.data)


def load_adapter(base: LoadedBase, served: ModelEntry) -> LoraAdapter | Any:
    """Return the adapter's weights, or, if it can't stay unmerged, a model with it merged in. Raises HoneError."""
    assert served.folder is not None
    config = read_adapter_config(served.folder)
    if config.megatron_config:  # PEFT would import a module that the file names
        message = f"adapter {served.name!r} in {served.folder} has megatron_config, and such adapters are not served"
        remedy = "Remove that field if the adapter is for a model of transformers."
        raise HoneError(ADAPTER_MISMATCH, message, remedy=remedy)
    require_adapter_weights(served.folder)
    try:
        peft_model, replaced = _wrap_with_peft(base.model, served.folder)
        if base.lora_batch is not None and not replaced:
            weights = _extract_lora_weights(peft_model, base.model.dtype)
            if weights is not None:
                return LoraAdapter(weights)
        if is_prepacked(peft_model):
            peft_model, _ = _wrap_with_peft(base.model, served.folder, unpacked=True)
        # Safe merging replaces a layer's weight; the other kind would add to the tensor that the base shares.
        merged = peft_model.merge_and_unload(safe_merge=True).eval().requires_grad_(False)
    except HoneError:
        raise
    except Exception as error:  # PEFT uses the fields of a configuration unchecked
        message = f"adapter {served.name!r} in {served.folder} does not fit the base model: {_get_first_line(error)}"
        raise HoneError(ADAPTER_MISMATCH, message) from error
    _cast_to_base_dtypes(merged, base.model)
    if merged.device.type == "cpu":
        del peft_model
        copy_mapped_tensors(merged, list_storages(merged) - list_storages(base.model))
        fuse_linears(merged, shared={parameter.data_ptr() for parameter in base.model.parameters()})
        if is_prepacked(base.model):
            prepack_weights([merged], unpacked_model=base.model)
    return merged


def _cast_to_base_dtypes(merged: Any, base: Any) -> None:
    """Give the modules that an adapter saved completely the dtype in which the base computes; PEFT keeps the file's."""
    dtypes = {name: parameter.dtype for name, parameter in base.named_parameters()}
    for name, parameter in merged.named_parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtypes.get(name, base.dtype))


def load_adapter_tokenizer(base: LoadedBase, folder: Path) -> Any:
    """Return the adapter's tokenizer, or else the base's. Raises HoneError ArtifactCorrupt."""
    if not (folder / "tokenizer_config.json").is_file():
        return base.tokenizer
    try:
        return AutoTokenizer.from_pretrained(folder.absolute(), trust_remote_code=False)
    except Exception as error:
        raise HoneError(
            ARTIFACT_CORRUPT, f"the tokenizer in {folder} can't be read: {_get_first_line(error)}"
        ) from error


def should_compute_in_float32(dtype: torch.dtype, weight_bytes: int, free_bytes: int, has_bfloat16: bool) -> bool:
    """Return whether to compute a 16-bit checkpoint in float32 on a CPU.

    Without bfloat16 instructions 16 bits are slower: on an AVX2 machine (one thread, matrices of 576x1536 to 4096x4096)
    bfloat16 took 1.0 to 2.0 times as long as float32 with 1 row, 1.3 to 2.9 with 8 rows and 3.6 to 4.6 with 64 rows.
    Widening is exact, and doubles the weights; it is not done when little else would fit into memory.
    """
    fits = 2 * weight_bytes < free_bytes * (1 - EMBEDDED_CACHE_SHARE)
    return dtype in (torch.bfloat16, torch.float16) and not has_bfloat16 and fits


def _wrap_with_peft(base: Any, folder: Path, *, unpacked: bool = False) -> tuple[Any, set[str]]:
    """Return PEFT's model on the base's own tensors, and the keys of the base's parameters that the file replaces.

    In the copy of a packed base, layers have no readable weights, unless `unpacked` is set or PEFT reads them first.
    Raises ValueError when the base or the adapter has weights that the other lacks, and HoneError ArtifactCorrupt.
    """
    from peft import PeftConfig, PeftModel, get_peft_model_state_dict
    from peft.utils import load_peft_weights

    place = str(folder.absolute())  # absolute, so that PEFT can't take it for a name on the hub
    try:
        weights = load_peft_weights(place, device="cpu").keys()
    except Exception as error:  # of safetensors, pickle or torch, which have no class in common
        remedy = "Save the adapter again with PEFT, or restore the file from where the adapter came from."
        message = f"the weights of the adapter in {folder} can't be read: {_get_first_line(error)}"
        raise HoneError(ARTIFACT_CORRUPT, message, remedy=remedy) from error
    factors = (".lora_A.", ".lora_B.")
    replaced = {key.removeprefix("base_model.model.") for key in weights if not any(part in key for part in factors)}
    shared = _copy_sharing_tensors(base, replaced)
    config: Any = PeftConfig.from_pretrained(place)
    if config.is_prompt_learning or config.peft_type == "XLORA":  # they may name files and repositories to load
        raise ValueError(f"adapters of the kind {config.peft_type.value} are not served")
    if is_prepacked(base) and (unpacked or replaced or isinstance(config.init_lora_weights, str)):
        unpack_weights(base, shared)
    peft_model = PeftModel.from_pretrained(shared, place, low_cpu_mem_usage=True)
    # PEFT ignores weights of layers that the base lacks.
    loaded = get_peft_model_state_dict(peft_model, save_embedding_layers=False).keys()
    for key in sorted(key for key in weights ^ loaded if ".lora_" in key):
        raise ValueError(f"only {'it' if key in weights else 'the base'} has {key}")
    return peft_model, replaced


def _extract_lora_weights(peft_model: Any, dtype: torch.dtype) -> LoraWeights | None:
    """Return the weights of plain LoRA on layers that take adapters; None when the adapter has anything else."""
    from peft.tuners.lora import Linear
    from peft.tuners.tuners_utils import BaseTunerLayer

    weights: LoraWeights = {}
    name = peft_model.active_adapter
    for layer, module in peft_model.base_model.model.named_modules():
        if not isinstance(module, BaseTunerLayer):
            continue
        if not isinstance(module, Linear) or not isinstance(module.get_base_layer(), LoraLinear):
            return None
        if module.lora_variant or module.lora_bias[name]:
            return None
        down, up = module.lora_A[name].get_parameter("weight"), module.lora_B[name].get_parameter("weight")
        scaled = up.data.t().float() * module.scaling[name]
        weights[layer] = (down.data.to(dtype, copy=True), scaled.to(dtype).contiguous())
    return weights


def _copy_sharing_tensors(base: Any, replaced: set[str]) -> Any:
    """Return a second model on the same tensors, except the base's own parameters that an adapter's file overwrites.

    The memo of deepcopy maps each shared object to itself, or to what replaces it in the copy.
    """
    named = itertools.chain(base.named_parameters(), base.named_buffers())
    memo: dict[int, Any] = {}
    for key, tensor in named:
        data = tensor.data.clone() if key in replaced else tensor.data
        memo[id(tensor)] = torch.nn.Parameter(data, False) if isinstance(tensor, torch.nn.Parameter) else data
    unused_batch = LoraBatch()  # not the base's, so the copy ignores its batches
    memo |= {id(module.lora_batch): unused_batch for module in base.modules() if isinstance(module, LoraLinear)}
    memo |= {
        id(m.packed_weight): m.packed_weight
        for m in base.modules()
        if isinstance(m, FusedLinear) and m.packed_weight is not None
    }
    # The copy's weights may change, and a fused weight would not notice.
    memo |= {id(module.fused): None for module in base.modules() if isinstance(module, FusedLinear) and module.fused}
    copied = copy.deepcopy(base, memo)
    copied.set_attn_implementation(choose_default_kernel(copied))  # the base may have its engine's
    return copied


def _load_weights_and_tokenizer(sources: ModelSources) -> tuple[Any, Any]:
    try:
        source: dict[str, Any] = {"revision": sources.revision, "trust_remote_code": False}  # never asks on a terminal
        refuse_unsupported_model(_read_config(sources.weights_source, source), sources.weights_source)
        _refuse_base_with_adapter(sources)
        tokenizer = AutoTokenizer.from_pretrained(sources.weights_source, **source)
        auto: Any = AutoModelForCausalLM
        found = auto.from_pretrained(
            sources.weights_source, dtype="auto", output_loading_info=True, ignore_mismatched_sizes=True, **source
        )
    except ImportError as error:  # transformers raises it if a kind of quantization needs another package
        remedy = "Serve the model that it was made from, in 16 bits."
        raise HoneError(
            MODEL_INVALID, f"can't load {sources.weights_source}: {_get_first_line(error)}", remedy=remedy
        ) from error
    except SafetensorError as error:
        remedy = "Copy or download the model again; a file that is cut or damaged is the usual cause."
        raise HoneError(
            MODEL_INVALID, f"can't load {sources.weights_source}: {_get_first_line(error)}", remedy=remedy
        ) from error
    except (OSError, ValueError) as error:
        cause = error.__cause__ or error
        reason = MODEL_NOT_FOUND
        if isinstance(cause, GatedRepoError):
            reason = HUB_UNAUTHORIZED
        elif isinstance(cause, LocalEntryNotFoundError | HfHubHTTPError) and not Path(sources.weights_source).exists():
            reason = HUB_UNREACHABLE
        raise HoneError(reason, f"can't load {sources.weights_source}: {_get_first_line(error)}") from error
    model, info = found
    if mismatched := sorted(info["mismatched_keys"]):
        key, has, expected = mismatched[0]
        shapes = f"{key} has the shape {list(has)} in the files, and {list(expected)} by config.json"
        raise HoneError(MODEL_INVALID, f"can't load {sources.weights_source}: {shapes}")
    if missing := sorted(info["missing_keys"]):
        lacks = f"its files lack {len(missing)} weights, such as {missing[0]}"
        raise HoneError(MODEL_INVALID, f"can't load {sources.weights_source}: {lacks}")
    return dequantize_model(model), tokenizer


def _read_config(weights: str, source: dict[str, Any]) -> Any:
    """Return the model's configuration. Raises HoneError ModelUnsupported where transformers has no such model."""
    try:
        return AutoConfig.from_pretrained(weights, **source)
    except ValueError as error:
        text = str(error)
        if "trust_remote_code" in text:
            raise HoneError(
                MODEL_UNSUPPORTED, f"{weights} brings code of its own, which this engine never runs"
            ) from error
        if "does not recognize this architecture" in text:
            raise HoneError(MODEL_UNSUPPORTED, f"can't load {weights}: {_get_first_line(error)}") from error
        raise


def _refuse_base_with_adapter(sources: ModelSources) -> None:
    """Raise HoneError ModelInvalid for a base model with an adapter, which transformers would put on top of it."""
    if find_adapter_config_file(sources.weights_source, revision=sources.revision):
        raise HoneError(
            MODEL_INVALID,
            f"can't load {sources.weights_source}: it holds an adapter (adapter_config.json)",
            remedy="Merge it first, with `hone merge`; or serve it as an adapter on its base model.",
        )


def dequantize_model(model: Any) -> Any:
    """Return the model with plain 16-bit layers of the same values, instead of bitsandbytes' layers in 4 or 8 bits.

    Those compute in 16 bits as well, unpack their weights for every batch, and can't share them with a copy.
    """
    is_quantized = getattr(model, "quantization_method", None) == QuantizationMethod.BITS_AND_BYTES
    return model.dequantize() if is_quantized else model


def _get_first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
