"""Which architectures the engine serves, judged by the model's classes before its weights are loaded.

Continuous batching keeps the keys and values of all requests in pages, and hands the pages to the attention of each
layer. That takes attention that goes through transformers' AttentionInterface, in every layer. Others would run, and
answer from a part of the text only, so they are refused. Next in the flow: loading.py.
"""

import ast
import inspect
import textwrap
from typing import Any

import torch
from hone_api.reasons import MODEL_UNSUPPORTED, HoneError
from transformers import AutoModelForCausalLM
from transformers.generation.continuous_batching.cache import ATTN_TYPE_TO_ALLOCATOR


def refuse_unserved(config: Any, name: str) -> None:
    """Raise HoneError ModelUnsupported when the engine can't serve the model of this configuration."""
    with torch.device("meta"):
        outline: Any = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    if why := find_obstacle(outline):
        raise HoneError(MODEL_UNSUPPORTED, f"{name} is a {type(outline).__name__}, and {why}")


def find_obstacle(outline: Any) -> str | None:
    """Return what keeps continuous batching from serving a model; None: nothing does."""
    config = outline.config.get_text_config()
    if outline._is_stateful or any(isinstance(part, torch.nn.Conv1d) for part in outline.modules()):
        return "its layers keep a state of each request, for which the engine's cache of keys and values has no place"
    kinds = set(getattr(config, "layer_types", None) or []) - set(ATTN_TYPE_TO_ALLOCATOR)
    if kinds:
        return f"it has layers of the kind {min(kinds)}, which the engine's cache of keys and values does not know"
    if getattr(config, "kv_lora_rank", None):
        return "its keys and values have different sizes, and the engine's cache has one size for both"
    if not outline._supports_attention_backend or not all(map(_passes_on, outline.modules())):
        return "its attention can't read keys and values from the pages of the engine's cache"
    return None


def _passes_on(part: torch.nn.Module) -> bool:
    """Whether a layer hands the pages, which it does not know itself, to its attention, and that to the function."""
    attention = {name for name, child in part.named_children() if type(child).__name__.endswith("Attention")}
    if type(part).__name__.endswith("Attention"):
        attention.add("attention_interface")
    if not attention:
        return True
    calls = [node for node in ast.walk(ast.parse(_source_of(part))) if isinstance(node, ast.Call)]
    own = [call for call in calls if getattr(call.func, "id", getattr(call.func, "attr", None)) in attention]
    return bool(own) and all(any(keyword.arg is None for keyword in call.keywords) for call in own)


def _source_of(part: torch.nn.Module) -> str:
    try:
        return textwrap.dedent(inspect.getsource(type(part)))
    except (OSError, TypeError):
        return ""
