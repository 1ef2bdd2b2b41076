"""From sources to models in memory.

An adapter is merged into a second model that shares every tensor with the base except those that the adapter changes.
So it answers at full speed, and costs as much memory as the layers that it targets: with `all-linear` nearly the base's
size again, and a key-value cache and a thread of its own on top. That suits CPUs and small jobs, not many adapters on a
large model.
"""

import copy
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hone_api.reasons import ADAPTER_MISMATCH, HUB_UNAUTHORIZED, HUB_UNREACHABLE, MODEL_NOT_FOUND, HoneError
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from .memory import CACHE_SHARE, available_memory, has_bfloat16
from .sources import Served, Sources


@dataclass(frozen=True)
class LoadedModel:
    served: Served
    model: Any
    tokenizer: Any


def load_models(sources: Sources) -> list[LoadedModel]:
    """Loads the weights once and merges each adapter into a copy of its own. Raises HoneError."""
    disable_progress_bar()  # type: ignore[no-untyped-call]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    base, tokenizer = _load_weights(sources)
    base.to(device).eval().requires_grad_(False)
    widen = device == "cpu" and float32_is_better(
        base.dtype, len(sources.models) * base.get_memory_footprint(), available_memory(), has_bfloat16()
    )
    if widen:
        base.float()
    loaded = []
    for served in sources.models:
        if served.folder is None:
            loaded.append(LoadedModel(served, base, tokenizer))
        else:
            own = (served.folder / "tokenizer_config.json").is_file()
            adapted = merge_adapter(base, served.name, served.folder)
            adapted_tokenizer = AutoTokenizer.from_pretrained(served.folder) if own else tokenizer
            loaded.append(LoadedModel(served, adapted, adapted_tokenizer))
    return loaded


def float32_is_better(dtype: torch.dtype, weight_bytes: int, free_bytes: int, bfloat16: bool) -> bool:
    """Whether to compute in float32 what the checkpoint has in 16 bits, on a CPU.

    Without bfloat16 instructions 16 bits are slower: on an AVX2 machine (one thread, matrices of 576x1536 to
    4096x4096) bfloat16 took 1.0 to 2.0 times as long as float32 with 1 row, 1.3 to 2.9 with 8 rows and 3.6 to 4.6 with
    64 rows. Widening is exact, and doubles the weights; it is left out when little more than they would fit.
    """
    fits = 2 * weight_bytes < free_bytes * (1 - CACHE_SHARE)
    return dtype in (torch.bfloat16, torch.float16) and not bfloat16 and fits


def merge_adapter(base: Any, name: str, folder: Path) -> Any:
    """A model that is `base` with the adapter merged in, sharing with it all that the adapter leaves as it is."""
    from peft import PeftModel, get_peft_model_state_dict
    from peft.utils import load_peft_weights

    try:
        weights = load_peft_weights(str(folder), device="cpu").keys()
        written = {key.removeprefix("base_model.model.") for key in weights}
        peft_model = PeftModel.from_pretrained(_shared_copy(base, written), str(folder))
        # PEFT passes over the weights of layers that the base lacks.
        loaded = get_peft_model_state_dict(peft_model, save_embedding_layers=False).keys()
        for key in sorted(key for key in weights ^ loaded if ".lora_" in key):
            raise ValueError(f"only {'it' if key in weights else 'the base'} has {key}")
        # Safe merging replaces a layer's weight; the other kind would add to the tensor that the base shares.
        return peft_model.merge_and_unload(safe_merge=True).eval().requires_grad_(False)
    except (ValueError, RuntimeError, KeyError, OSError) as error:
        message = f"adapter {name!r} in {folder} does not fit the base model: {_first_line(error)}"
        raise HoneError(ADAPTER_MISMATCH, message) from error


def _shared_copy(base: Any, written: set[str]) -> Any:
    """A second model on the same tensors, except the base's own parameters that an adapter's file overwrites."""
    named = itertools.chain(base.named_parameters(), base.named_buffers())
    memo: dict[int, Any] = {}
    for key, tensor in named:
        data = tensor.data.clone() if key in written else tensor.data
        memo[id(tensor)] = torch.nn.Parameter(data, False) if isinstance(tensor, torch.nn.Parameter) else data
    return copy.deepcopy(base, memo)


def _load_weights(sources: Sources) -> tuple[Any, Any]:
    try:
        tokenizer = AutoTokenizer.from_pretrained(sources.weights, revision=sources.revision)
        model = AutoModelForCausalLM.from_pretrained(
            sources.weights, revision=sources.revision, dtype="auto", attn_implementation="sdpa"
        )
    except (OSError, ValueError) as error:
        cause = error.__cause__ or error
        reason = MODEL_NOT_FOUND
        if isinstance(cause, GatedRepoError):
            reason = HUB_UNAUTHORIZED
        elif isinstance(cause, LocalEntryNotFoundError | HfHubHTTPError) and not Path(sources.weights).exists():
            reason = HUB_UNREACHABLE
        raise HoneError(reason, f"can't load {sources.weights}: {_first_line(error)}") from error
    return model, tokenizer


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
