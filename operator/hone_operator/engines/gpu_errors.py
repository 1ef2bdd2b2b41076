"""Whether an engine that has no check of Hone's ended because it could use no GPU, by the end of its log.

Engine vllm checks its GPUs by hone_api.gpucheck before it starts, where Hone's modules are in its pod. For the others,
and for vLLM without a claim, adapters or a key, these are the sentences of torch, ROCm, vLLM and SGLang.
"""

import re

from hone_api.reasons import GPU_NOT_USABLE, HoneError

_SENTENCES = re.compile(
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


def explain_no_gpu(words: str, engine: str, gpus: int, resource: str) -> HoneError | None:
    """Return the failure where the engine's last words are that it sees no GPU, and it asks for some; else None."""
    found = _SENTENCES.search(words)
    if not gpus or not found:
        return None
    message = (
        f"The pod asks for {gpus} {resource} (spec.resources.gpus), and engine {engine} could use none: "
        f"{found[0].strip().rstrip('.')}"
    )
    return HoneError(GPU_NOT_USABLE, message)
