"""The profile's choices and the memory estimate for one job, from its base model, its rows and this device."""

from dataclasses import dataclass, replace
from functools import cached_property

from hone_api.datareport import SplitReport
from hone_api.estimate import Estimate
from hone_api.finetunejob import FineTuneJobSpec
from transformers import PreTrainedModel
from trl.trainer.sft_config import SFTConfig

from hone_trainer import profile
from hone_trainer.memory import advice, formulas, plan
from hone_trainer.memory.settings import Settings, Sharding
from hone_trainer.profile import Choice, Device, Step


@dataclass(frozen=True)
class Planned:
    """`outline` is the base model without weights, `rows` those to train on, `max_length` that of SFTConfig."""

    spec: FineTuneJobSpec
    outline: PreTrainedModel
    device: Device
    rows: SplitReport
    max_length: int | None

    def choices(self) -> list[Choice]:
        """What the profile chooses. Raises HoneError ModelInvalid, InvalidSpec."""
        if self.spec.training.profile == "none":
            return []
        longest = self.max_length or self.rows.lengths.max
        return profile.choose(self.spec.training, self.device, self.rows, longest, self._peak)

    def estimate(self, args: SFTConfig) -> Estimate:
        """What a process needs at its peak with these arguments."""
        return formulas.estimate(self._settings(args))

    def check(self, args: SFTConfig) -> list[str]:
        """A warning when this machine's memory will hardly do. Raises HoneError ModelTooLarge when the GPU's won't."""
        error = advice.too_large(self._settings(args), self.device.memory, self.device.name, self._plan.adapter)
        if error and self.device.kind == "gpu":
            raise error
        return [error.sentence()] if error else []

    @cached_property
    def sharding(self) -> Sharding:
        """How several GPUs share the model: with parallelism auto, fsdp when one can't hold the least that there is."""
        found = plan.sharding_of(self.spec)
        if found != "ddp" or self.spec.training.parallelism != "auto" or self.spec.method == "qlora":
            return found
        written = self.spec.training.sft_config()
        settings = replace(
            self._plan.settings,
            batch=written.get("per_device_train_batch_size", 1),
            checkpointing=written.get("activation_checkpointing", True),
        )
        return found if formulas.estimate(settings).total <= self.device.memory else "fsdp"

    @cached_property
    def _plan(self) -> plan.Plan:
        longest = self.rows.lengths.max
        return plan.of(self.spec, self.outline, length=min(self.max_length or longest, longest))

    def _peak(self, step: Step) -> int:
        settings = replace(
            self._plan.settings,
            sharding=self.sharding,
            batch=step.batch,
            length=step.length,
            packed=step.packed,
            mixed=step.autocast,
            checkpointing=step.checkpointing,
        )
        return formulas.estimate(settings).total

    def _settings(self, args: SFTConfig) -> Settings:
        packed = bool(args.packing)
        return replace(
            self._plan.settings,
            sharding=self.sharding,
            batch=args.per_device_train_batch_size,
            length=args.max_length if packed and args.max_length else self._plan.settings.length,
            packed=packed and args.packing_strategy != "wrapped",
            mixed=bool(args.bf16 or args.fp16),
            checkpointing=bool(args.activation_checkpointing),
            accumulation=args.gradient_accumulation_steps > 1,
        )
