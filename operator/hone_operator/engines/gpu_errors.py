"""Recognize from the end of an engine's log that it could use no GPU.

Engine vllm checks its GPUs with hone_api.gpucheck before it starts, where Hone's modules are in its pod. For the other
engines, and for vLLM without a claim, adapters or a key, this module knows the messages of torch, ROCm, vLLM and
SGLang.
"""

import re

from hone_api.reasons import GPU_NOT_USABLE, HoneError

_NO_GPU_MESSAGES = re.compile(
    r"no (?:HIP|CUDA) GPUs are available"
    r"|no ROCm-capable device is detected"
    r"|found no NVIDIA driver on your system"
    r"|unable to open /dev/kfd read-write[^\n]*"
    r"|failed to infer device type"
    r"|device string must not be empty"
    r"|no accelerator \([^)\n]*\)[^\n]* is available"
    r"|torch not compiled with CUDA enabled",
    re.IGNORECASE,
)


def explain_no_gpu(log_end: str, engine: str, gpus: int, resource: str) -> HoneError | None:
    """Return the failure where `log_end` shows that the engine found none of its GPUs; else None."""
    found = _NO_GPU_MESSAGES.search(log_end)
    if not gpus or not found:
        return None
    message = (
        f"The pod asks for {gpus} {resource} (spec.resources.gpus), and engine {engine} could use none: "
        f"{found[0].strip().rstrip('.')}"
    )
    return HoneError(GPU_NOT_USABLE, message)
