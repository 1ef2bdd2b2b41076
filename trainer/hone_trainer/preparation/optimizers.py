"""Optimizers from packages that may be missing or not work on this device."""

from hone_api.reasons import INVALID_SPEC, HoneError
from transformers import PreTrainedModel, Trainer
from trl.trainer.sft_config import SFTConfig

from hone_trainer.models.quantization import require_bitsandbytes


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
        require_bitsandbytes(f"spec.training.optim is {name}")
