"""Requirements of method, adapter and optimizer, checked by the model's config before its weights are downloaded."""

from hone_api.finetunejobs.spec import FineTuneJobSpec, LoraOptions
from transformers import PreTrainedModel
from trl.trainer.sft_config import SFTConfig

from hone_trainer.models import lora_targets, quantization
from hone_trainer.preparation import optimizers


def check_compatibility(spec: FineTuneJobSpec, name: str, outline: PreTrainedModel, args: SFTConfig) -> None:
    """Raise HoneError InvalidSpec for what does not go together; `outline` is the base model without its weights."""
    quantization.refuse_quantized(spec, name, outline.config)
    if spec.method == "qlora":
        quantization.make_nf4_config()
    if spec.method != "full":
        lora_targets.check_targets(spec.lora or LoraOptions(), outline)
    optimizers.check_optimizer(args, outline)
