"""Load a base model in 4 bits for method qlora, and refuse quantized models where they don't fit.

bitsandbytes is imported only here, and only when a job needs it: the import takes seconds, and fails where the package
or its library for the GPU is missing. `base_model` loads with this configuration.
"""

import importlib
from importlib.metadata import version
from typing import Any

import torch
from hone_api.finetunejobs.spec import FineTuneJobSpec
from hone_api.reasons import INVALID_SPEC, HoneError
from peft import prepare_model_for_kbit_training
from transformers import BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils.import_utils import is_torch_bf16_gpu_available

# The oldest version of bitsandbytes: before it, 4-bit layers gave NaN on ROCm.
OLDEST = (0, 50)


def make_nf4_config() -> BitsAndBytesConfig:
    """Return the configuration of NF4 with double quantization, as in the QLoRA paper (arXiv 2305.14314, section 3).

    Raises HoneError InvalidSpec when bitsandbytes is missing or can't work.
    """
    require_bitsandbytes("spec.method is qlora")
    half = torch.float16 if torch.cuda.is_available() and not is_torch_bf16_gpu_available() else torch.bfloat16
    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=half,
    )


def keep_unpacked(network: PreTrainedModel) -> None:
    """Make 4-bit layers compute evaluations as they compute training.

    On CPUs with AVX-512 for bfloat16, the first evaluation would repack their weights in place. The packed form is for
    other kernels than those of training, and fails on layers narrower than a block.
    """
    for module in network.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def prepare_for_training(network: PreTrainedModel) -> PreTrainedModel:
    """Freeze the model, and widen what is not in 4 bits (embeddings, norms, output head) to float32, as PEFT
    recommends.

    SFTTrainer handles the gradients of the inputs, which activation checkpointing needs, and the adapter's bfloat16.
    """
    return prepare_model_for_kbit_training(  # type: ignore[no-untyped-call,no-any-return]
        network, use_gradient_checkpointing=False
    )


def refuse_quantized(spec: FineTuneJobSpec, name: str, config: PreTrainedConfig) -> None:
    """Raise HoneError InvalidSpec for a quantized checkpoint when the method, or merging, needs an unquantized one."""
    how = get_quantization_method(config)
    if how is None:
        return
    unquantized = "name the model that it was made from, in 16 bits"
    if spec.method != "lora":
        raise HoneError(
            INVALID_SPEC,
            f"spec.method is {spec.method}, and {name} is quantized already ({how})",
            remedy=f"Set method: lora to train an adapter on it as it is, or {unquantized}.",
        )
    if spec.output.save in ("merged", "both"):
        raise HoneError(
            INVALID_SPEC,
            f"spec.output.save is {spec.output.save}, and {name} is quantized ({how}), so that merging would lose what "
            "was learned",
            remedy=f"Set output.save: adapter, or {unquantized}.",
        )


def get_quantization_method(config: PreTrainedConfig) -> str | None:
    """Return how a checkpoint is quantized, such as gptq; None: it is not."""
    found: Any = getattr(config, "quantization_config", None)
    if not found:
        return None
    how = found.get("quant_method") if isinstance(found, dict) else getattr(found, "quant_method", None)
    return str(getattr(how, "value", how) or "in a way of its own")


def require_bitsandbytes(what: str) -> None:
    """Raise HoneError InvalidSpec, with a message that begins with `what`, unless bitsandbytes is there and works."""
    remedy = "Install it: pip install 'bitsandbytes>=0.50,<0.51'; or use method lora and another optimizer."
    try:
        native = importlib.import_module("bitsandbytes.cextension")
    except (ImportError, OSError, RuntimeError) as error:
        text = " ".join(str(error).split())
        raise HoneError(INVALID_SPEC, f"{what}, and bitsandbytes can't be imported: {text}", remedy=remedy) from error
    found = version("bitsandbytes")
    if tuple(int(part) for part in found.split(".")[:2]) < OLDEST:
        raise HoneError(INVALID_SPEC, f"{what}, and bitsandbytes is {found}, which gives NaN on ROCm", remedy=remedy)
    if torch.cuda.is_available() and isinstance(native.lib, native.ErrorHandlerMockBNBNativeLibrary):
        raise HoneError(
            INVALID_SPEC,
            f"{what}, and bitsandbytes {found} has no library for this GPU's {native.BNB_BACKEND}",
            remedy="`python -m bitsandbytes` shows what it looks for; or use method lora and another optimizer.",
        )
