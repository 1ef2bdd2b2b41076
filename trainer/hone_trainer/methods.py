"""What method, adapter and optimizer ask of the base model, judged by its config before its weights are downloaded."""

from hone_api.finetunejob import FineTuneJobSpec, LoraOptions
from trl.trainer.sft_config import SFTConfig

from hone_trainer import adapters, model, optimizers, quantize


def check(spec: FineTuneJobSpec, base: model.BaseModel, args: SFTConfig) -> None:
    """Raise HoneError InvalidSpec for what does not go together, ModelInvalid for a config of no language model."""
    outline = model.outline(base, spec.model)
    quantize.refuse_quantized(spec, base.location, outline.config)
    if spec.method == "qlora":
        quantize.four_bits()
    if spec.method != "full":
        adapters.check_targets(spec.lora or LoraOptions(), outline)
    optimizers.check(args, outline)
