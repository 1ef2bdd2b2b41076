"""Requirements of method, adapter and optimizer, checked by the model's config before its weights are downloaded."""

from hone_api.finetunejobs.spec import FineTuneJobSpec, LoraOptions
from hone_api.reasons import INVALID_SPEC, HoneError
from transformers import PreTrainedModel, Trainer
from trl.trainer.sft_config import SFTConfig

from hone_trainer.models import lora_targets, quantization


def check_compatibility(spec: FineTuneJobSpec, name: str, outline: PreTrainedModel, args: SFTConfig) -> None:
    """Raise HoneError InvalidSpec for what does not go together; `outline` is the base model without its weights."""
    quantization.refuse_quantized(spec, name, outline.config)
    if spec.method == "qlora":
        quantization.make_nf4_config()
    if spec.method != "full":
        lora_targets.check_targets(spec.lora or LoraOptions(), outline)
    check_optimizer(args, outline)


def check_optimizer(args: SFTConfig, network: PreTrainedModel) -> None:
    """Raise HoneError InvalidSpec, before the first step, when the optimizer can't be created for the model."""
    name = getattr(args.optim, "value", args.optim)
    try:
        optimizer, _ = Trainer.get_optimizer_cls_and_kwargs(args, network)
    except (ImportError, ValueError, RuntimeError, OSError) as error:
        raise HoneError(
            INVALID_SPEC,
            f"spec.training.optim is {name}, which can't be used: {' '.join(str(error).split())}",
            remedy="Take another optimizer, such as adamw_torch_fused or adamw_8bit.",
        ) from error
    if getattr(optimizer, "__module__", "").startswith("bitsandbytes."):
        quantization.require_bitsandbytes(f"spec.training.optim is {name}")
