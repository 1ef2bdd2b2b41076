"""Decide which architectures the engine serves, by the model's classes, before its weights are loaded.

Continuous batching keeps the keys and values of all requests in pages, and hands the pages to the attention of each
layer. This requires attention that goes through transformers' AttentionInterface in every layer. Other models would
run, but read only a part of the text, so they are refused. Next in the flow: loader.py.
"""

import ast
import inspect
import textwrap
from typing import Any

import torch
from hone_api.reasons import MODEL_UNSUPPORTED, HoneError
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM

from hone_server.transformers_internals import ATTN_TYPE_TO_ALLOCATOR


def refuse_unsupported_model(config: Any, name: str) -> None:
    """Raise HoneError ModelUnsupported when the engine can't serve the model of this configuration."""
    if getattr(config, "is_encoder_decoder", False):
        message = f"{name} is of the type {config.model_type}, an encoder-decoder: it reads the full text first, "
        raise HoneError(MODEL_UNSUPPORTED, f"{message}and this engine serves models that continue a text")
    try:
        with torch.device("meta"):
            meta_model: Any = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    except ValueError as error:
        if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
            raise
        message = f"{name} is of the type {config.model_type}, which transformers has no causal language model for"
        raise HoneError(MODEL_UNSUPPORTED, message) from error
    if why := find_unsupported_feature(meta_model):
        raise HoneError(MODEL_UNSUPPORTED, f"{name} is a {type(meta_model).__name__}, and {why}")


def find_unsupported_feature(meta_model: Any) -> str | None:
    """Return what keeps continuous batching from serving a model; None: nothing."""
    config = meta_model.config.get_text_config()
    if meta_model._is_stateful or any(isinstance(part, torch.nn.Conv1d) for part in meta_model.modules()):
        return "its layers keep a state of each request, for which the engine's cache of keys and values has no place"
    kinds = set(getattr(config, "layer_types", None) or []) - set(ATTN_TYPE_TO_ALLOCATOR)
    if kinds:
        return f"it has layers of the kind {min(kinds)}, which the engine's cache of keys and values does not know"
    if any(hasattr(part, "create_position_ids_from_input_ids") for part in meta_model.modules()):
        return "it counts positions from the number of its padding token, and the engine counts them from 0"
    if not _has_uniform_heads(config) or len(_list_key_sizes(meta_model.get_decoder())) > 1:
        return "its layers have heads of different sizes or numbers, and the engine's cache has one size for all layers"
    if getattr(config, "kv_lora_rank", None):
        return "its keys and values have different sizes, and the engine's cache has one size for both"
    if any(getattr(part, "is_causal", None) is False for part in meta_model.modules() if hasattr(part, "layer_idx")):
        return "its attention reads later tokens as well: it is not a model that continues a text"
    if not meta_model._supports_attention_backend:
        return NOT_PAGED
    # Other parts read images or sounds, which requests to this engine can't have.
    kinds_of_parts = {type(part): part for part in meta_model.get_decoder().modules()}.values()
    return next((why for part in kinds_of_parts if (why := _find_attention_fault(part))), None)


def find_steady_context_tokens(model: Any) -> int | None:
    """Return the longest context in which positions are rotated the same for every request of a batch; None: any.

    Some models rotate all positions differently once a text is longer than their original context. Their code decides
    this once for a batch, by its longest request, so a long request would change the answers of others.
    """
    config = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    by_layers = [one for one in rope.values() if isinstance(one, dict)]
    original_limit = getattr(config, "original_max_position_embeddings", None)
    reads_longest = any(
        "max(position_ids)" in _get_source(part) for part in model.modules() if hasattr(part, "inv_freq")
    )
    limits = [
        rope.get("original_max_position_embeddings") or original_limit or config.max_position_embeddings
        for rope in by_layers or [rope]
        if rope.get("rope_type") == "longrope" or (reads_longest and rope.get("rope_type", "default") != "default")
    ]
    return min(limits, default=None)


def _has_uniform_heads(config: Any) -> bool:
    try:
        sizes = [getattr(config, name, None) for name in ("head_dim", "num_key_value_heads", "num_attention_heads")]
    except RuntimeError:  # transformers refuses to name one size where the layers have several
        return False
    return not any(isinstance(size, list | tuple) and len(set(size)) > 1 for size in sizes)


def _list_key_sizes(decoder: torch.nn.Module) -> set[int]:
    """Return the sizes of the layers' key projections (`k_proj`), in features."""
    layers = [getattr(part, "k_proj", None) for part in decoder.modules()]
    return {layer.out_features for layer in layers if isinstance(layer, torch.nn.Linear)}


NOT_PAGED = "its attention can't read keys and values from the pages of the engine's cache"
# The variable for the attention kernel in transformers' models.
KERNEL_VARIABLE = "attention_interface"
KERNEL_ARGUMENTS = frozenset(
    {"attention_mask", "dropout", "scaling", "sliding_window", "softcap", "s_aux", "is_causal", "position_ids"}
)


def _find_attention_fault(part: torch.nn.Module) -> str | None:
    """Return what keeps the kernels from computing a layer's attention, by the source of its class; None: nothing.

    A layer does not use the pages itself: it has to pass them on to its attention, and this to the kernel.
    """
    attention = {name for name, child in part.named_children() if type(child).__name__.endswith("Attention")}
    is_attention = type(part).__name__.endswith("Attention")
    if is_attention:
        attention.add(KERNEL_VARIABLE)
    if not attention:
        return None
    calls = [node for node in ast.walk(ast.parse(_get_source(part))) if isinstance(node, ast.Call)]
    attention_calls = [call for call in calls if _get_call_name(call) in attention]
    if not attention_calls or not all(
        any(keyword.arg is None for keyword in call.keywords) for call in attention_calls
    ):
        return NOT_PAGED
    return (
        _find_kernel_call_fault([call for call in attention_calls if _get_call_name(call) == KERNEL_VARIABLE])
        if is_attention
        else None
    )


def _find_kernel_call_fault(calls: list[ast.Call]) -> str | None:
    """Return what the calls of the kernel require that the kernels on pages don't support."""
    if len(calls) > 1:
        return (
            "its attention computes several times in each layer, and would put its keys and values into the cache twice"
        )
    for call in calls:
        arguments = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords if keyword.arg}
        mask = arguments.get("attention_mask") or "".join(ast.unparse(one) for one in call.args[4:5])
        if mask != "attention_mask":
            return "its attention makes a mask of its own, which the engine's batches of several requests don't have"
        if unknown := sorted(arguments.keys() - KERNEL_ARGUMENTS):
            return f"its attention depends on {', '.join(unknown)}, which the engine's kernels don't know"
    return None


def _get_call_name(call: ast.Call) -> str | None:
    return getattr(call.func, "id", getattr(call.func, "attr", None))


def _get_source(part: torch.nn.Module) -> str:
    try:
        return textwrap.dedent(inspect.getsource(type(part)))
    except (OSError, TypeError):
        return ""
