"""Find the attention kernels that a model can use: a rule that the trainer and the embedded engine share.

Input is a model of transformers, with or without weights; output is the names that `attn_implementation` takes. The
model's classes declare what they support, and a composite model supports what all of its parts support. transformers
makes the same choice only if no kernel is requested, and raises an error for an unsupported one. Needs no torch.
"""

import os
from collections.abc import Iterator
from typing import Any, Literal

Kernel = Literal["flash_attention_2", "sdpa", "eager"]

# Numbers in a head of queries and keys, above which FlashAttention 2 raises an error.
LARGEST_HEAD = 256


# With TRUE, FlashAttention computes with its Triton kernels on AMD GPUs. Those of 2.8.3 pass over windows and soft caps
# without an error: flash_attn_triton_amd/interface_fa.py reads neither.
TRITON = "FLASH_ATTENTION_TRITON_AMD_ENABLE"


def find_kernels(network: Any) -> tuple[Kernel, ...]:
    """Return the kernels that every part of a model supports, the fastest first. The last is always eager."""
    parts = list(_list_parts(network))
    found: list[Kernel] = []
    is_exact = os.environ.get(TRITON) != "TRUE" or not any(_limits_scores(part.config) for part in parts)
    if is_exact and all(_supports_flash(part) for part in parts) and _read_head_size(network.config) <= LARGEST_HEAD:
        found.append("flash_attention_2")
    if all(part._supports_sdpa for part in parts):
        found.append("sdpa")
    return (*found, "eager")


def choose_default_kernel(network: Any) -> Kernel:
    """Return the kernel that needs no package but torch: sdpa where all parts support it, else eager."""
    return "sdpa" if "sdpa" in find_kernels(network) else "eager"


def _list_parts(network: Any) -> Iterator[Any]:
    return (part for part in network.modules() if hasattr(part, "_supports_sdpa"))


def _supports_flash(part: Any) -> bool:
    """Return whether the class itself supports FlashAttention 2. For others transformers would download a kernel."""
    only = getattr(part, "_compatible_flash_implementations", None)
    return bool(part._supports_flash_attn) and (only is None or "flash_attention_2" in only)


def _limits_scores(config: Any) -> bool:
    """Return whether some layer attends only to a window or a chunk of the tokens, or caps its scores."""
    names = ("sliding_window", "attention_chunk_size", "attn_logit_softcapping")
    return any(getattr(config, name, None) for name in names)


def _read_head_size(config: Any) -> int:
    text = config.get_text_config()
    size = getattr(text, "head_dim", None)
    if not size:
        size = (getattr(text, "hidden_size", None) or 0) // (getattr(text, "num_attention_heads", None) or 1)
    return int(max(size)) if isinstance(size, list | tuple) else int(size)
