"""What method, adapter and optimizer ask of the base model, judged by its config before its weights are downloaded."""

from hone_api.finetunejob import FineTuneJobSpec, LoraOptions
from transformers import PreTrainedModel
from trl.trainer.sft_config import SFTConfig

from hone_trainer import optimizers, quantize, targets


def check(spec: FineTuneJobSpec, name: str, outline: PreTrainedModel, args: SFTConfig) -> None:
    """Raise HoneError InvalidSpec for what does not go together; `outline` is the base model without its weights."""
    quantize.refuse_quantized(spec, name, outline.config)
    if spec.method == "qlora":
        quantize.four_bits()
    if spec.method != "full":
        targets.check_targets(spec.lora or LoraOptions(), outline)
    optimizers.check(args, outline)
