"""The profile's choices and the memory estimate for one job, from its base model, its rows and this device.

`prepare` builds a `DevicePlanner`; `make_plan` returns the DevicePlan, which prepared.json keeps, and the final
SFTConfig.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from hone_api.artifacts.dataset_report import SplitReport
from hone_api.artifacts.memory_estimate import Estimate
from hone_api.artifacts.trainer_reports import Parameters
from hone_api.byte_sizes import format_gib
from hone_api.common import ForeignModel
from hone_api.finetunejobs.spec import FineTuneJobSpec, LoraOptions
from hone_api.finetunejobs.training import TypedArguments
from pydantic.alias_generators import to_camel
from transformers import PreTrainedModel
from trl.trainer.sft_config import SFTConfig

from hone_trainer.config import auto_profile, model_traits
from hone_trainer.config.auto_profile import Choice, ModelTraits, StepShape, TrainingDevice
from hone_trainer.config.trl_config import make_sft_config
from hone_trainer.memory import advice, formulas, paging, plan, render
from hone_trainer.memory.inputs import MemorySettings, Sharding
from hone_trainer.models import lora_targets

# Arguments that Trainer silently ignores when it trains on a CPU.
ONLY_ON_GPUS = ("fp16", "dataloader_pin_memory", "torch_empty_cache_steps")


class DevicePlan(ForeignModel):
    """The choices, estimate and warnings for a job on a device, as prepared.json keeps them."""

    device: TrainingDevice
    profile: list[Choice]
    sharding: Sharding
    estimate: Estimate | None = None
    parameters: Parameters
    warnings: list[str]


@dataclass(frozen=True)
class DevicePlanner:
    """A job to plan. `outline` is the base model without weights, `rows` those to train on, `max_length` that of
    SFTConfig.
    """

    spec: FineTuneJobSpec
    outline: PreTrainedModel
    device: TrainingDevice
    rows: SplitReport
    max_length: int | None

    def make_plan(self, arguments_of: Callable[[list[Choice]], dict[str, Any]]) -> tuple[DevicePlan, SFTConfig]:
        """Return the plan, and the arguments that `arguments_of` makes of its choices.

        Raises HoneError ModelInvalid, InvalidSpec, ModelTooLarge.
        """
        choices = self.choose_profile()
        args = make_sft_config(arguments_of(choices))
        model_traits.check_traits(args, self.traits)
        warnings = (
            self.check_memory(args)
            + self.find_paging_warnings(args)
            + self.find_left_out_layers()
            + self.find_fields_without_effect()
        )
        found = DevicePlan(
            device=self.device,
            profile=choices,
            sharding=self.sharding,
            estimate=self.estimate(args),
            parameters=self._plan.parameters,
            warnings=warnings,
        )
        return found, args

    def choose_profile(self) -> list[Choice]:
        """Return the profile's choices. Raises HoneError ModelInvalid, InvalidSpec."""
        if self.spec.training.profile == "none":
            return []
        longest = self.max_length or self.rows.lengths.max
        return auto_profile.choose_profile(
            self.spec.training, self.device, self.rows, longest, self._estimate_peak, self.traits
        )

    def estimate(self, args: SFTConfig) -> Estimate | None:
        """Return the estimated peak memory of a process with these arguments; None where it is not estimated."""
        settings = self._make_settings(args)
        return formulas.estimate_memory(settings) if settings else None

    def check_memory(self, args: SFTConfig) -> list[str]:
        """Return a warning when this machine may lack memory. Raises HoneError ModelTooLarge when the GPU lacks it."""
        settings = self._make_settings(args)
        if settings is None:
            return [render.describe_unestimated(self._plan.unestimated)]
        if self.device.memory is None:
            needed = format_gib(formulas.estimate_memory(settings).total)
            return [
                f"no GPU is visible, and --gpu-memory is not given: the estimate, {needed} a device, was not compared "
                "with a GPU's memory; that is done when training starts"
            ]
        error = advice.make_too_large_error(settings, self.device.memory, self.device.name, self._plan.adapter)
        if error and self.device.kind == "gpu":
            raise error
        return [error.format_message()] if error else []

    def find_fields_without_effect(self) -> list[str]:
        """Return a warning for each field of spec.training that has no effect on this device."""
        written = self.spec.training.get_sft_arguments()
        names = [name for name in ONLY_ON_GPUS if written.get(name)] if self.device.kind == "cpu" else []
        fields = [
            to_camel(name) if name in TypedArguments.model_fields else f"extra.{to_camel(name)}" for name in names
        ]
        return [f"spec.training.{field} has no effect on a CPU" for field in fields]

    def find_paging_warnings(self, args: SFTConfig) -> list[str]:
        """Return a warning for an optimizer whose states ROCm leaves in the host's memory."""
        return paging.find_warnings(self.spec, self._make_settings(args)) if self.device.kind == "gpu" else []

    def find_left_out_layers(self) -> list[str]:
        """Return a warning that names the linear layers which all-linear does not adapt, if there are any."""
        lora = self.spec.lora or LoraOptions()
        if self.spec.method == "full" or lora.target_modules != lora_targets.ALL_LINEAR:
            return []
        assert self._plan, "planning has given the outline its adapter"
        names = ", ".join(lora_targets.find_left_out(self.outline))
        what = f"spec.lora.targetModules is {lora_targets.ALL_LINEAR}, and PEFT can't adapt {names} of this model"
        return [f"{what}: they stay as they are"] if names else []

    @cached_property
    def traits(self) -> ModelTraits:
        """What the model's class supports."""
        return model_traits.read_traits(self.outline)

    @cached_property
    def sharding(self) -> Sharding:
        """How several GPUs share the model: with parallelism auto, fsdp when the smallest setting doesn't fit on one
        GPU.
        """
        found = plan.get_sharding(self.spec)
        memory = self.device.memory
        if found != "ddp" or self.spec.training.parallelism != "auto" or self.spec.method == "qlora" or memory is None:
            return found
        settings = self._plan.settings
        if settings is None:
            return found
        written = self.spec.training.get_sft_arguments()
        settings = replace(
            settings,
            batch=written.get("per_device_train_batch_size", 1),
            checkpointing=written.get("activation_checkpointing", True),
        )
        return found if formulas.estimate_memory(settings).total <= memory else "fsdp"

    @cached_property
    def _plan(self) -> plan.MemoryPlan:
        longest = self.rows.lengths.max
        return plan.make_memory_plan(self.spec, self.outline, length=min(self.max_length or longest, longest))

    @cached_property
    def _start(self) -> MemorySettings | None:
        """The plan's settings on this device; None where memory is not estimated."""
        settings = self._plan.settings
        if settings is None:
            return None
        flash = self.device.has_flash_attention and "flash_attention_2" in self.traits.kernels
        uses_flash = flash and self.device.kind == "gpu" and self.spec.training.profile == "auto"
        pages = settings.pages and self.device.kind == "gpu"
        return replace(settings, sharding=self.sharding, eager=settings.eager and not uses_flash, pages=pages)

    def _estimate_peak(self, step: StepShape) -> int | None:
        settings = self._start
        if settings is None:
            return None
        settings = replace(
            settings,
            batch=step.batch,
            length=step.length,
            packed=step.packed,
            mixed=step.autocast,
            checkpointing=step.checkpointing,
        )
        return formulas.estimate_memory(settings).total

    def _make_settings(self, args: SFTConfig) -> MemorySettings | None:
        settings = self._start
        if settings is None:
            return None
        packed = bool(args.packing)
        return replace(
            settings,
            batch=args.per_device_train_batch_size,
            length=args.max_length if packed and args.max_length else settings.length,
            packed=packed and args.packing_strategy != "wrapped",
            mixed=bool(args.bf16 or args.fp16),
            checkpointing=bool(args.activation_checkpointing),
            accumulation=args.gradient_accumulation_steps > 1,
        )
