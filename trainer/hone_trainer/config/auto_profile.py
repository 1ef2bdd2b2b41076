"""`training.profile: auto`: choose what the user left out, for this model, data and device. Pure.

Input is spec.training, the device, the rows' lengths and a function that estimates memory; output is a list of Choices.
A choice changes nothing but rounding, the order of rows, and packing; its `effect` names which. `device_plan` calls it.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from hone_api.artifacts.dataset_report import SplitReport
from hone_api.attention import Kernel
from hone_api.byte_sizes import format_gib
from hone_api.common import ForeignModel
from hone_api.finetunejobs.training import TrainingArguments
from pydantic import ConfigDict, Field
from pydantic.alias_generators import to_camel
from pydantic.dataclasses import dataclass as model_dataclass

Effect = Literal["none", "rounding", "order", "packing"]

# The only choice that is not a field of SFTConfig: an argument of from_pretrained.
ATTENTION = "attn_implementation"
EFFECTS = {
    "rounding": "no more than rounding",
    "order": "the order of rows",
    "packing": "which rows share a step",
}
BATCH, ACCUMULATION = "per_device_train_batch_size", "gradient_accumulation_steps"
# SFTConfig's default of per_device_train_batch_size.
BATCH_OF_TRL = 8
# Lengths are spread when the 95th percentile has at least this many times the median's tokens.
SPREAD = 1.5
# Batches whose rows are sorted by length together: transformers' number for large data sets. For small ones it takes
# fewer, and pads more.
GROUP_BATCHES = 50
WORKERS = 4
UNKNOWN = "the memory that this model needs is not estimated"


class Choice(ForeignModel):
    """One chosen field of SFTConfig, or ATTENTION."""

    field: str
    value: Any
    why: str
    effect: Effect = Field(description="What it changes in what is learned.")
    group_batches: int | None = Field(
        None, description="With group_by_length: the batches that are sorted together. None: as transformers groups."
    )

    def describe(self) -> str:
        """Return field, value, reason and effect as a sentence."""
        changes = "" if self.effect == "none" else f" (changes {EFFECTS[self.effect]})"
        value = str(self.value).lower() if isinstance(self.value, bool) else self.value
        return f"{to_camel(self.field)}: {value}, since {self.why}{changes}"


@model_dataclass(frozen=True, config=ConfigDict(alias_generator=to_camel, populate_by_name=True))
class TrainingDevice:
    """The device of training. `memory` in bytes: of the GPU, or of this machine or container; None: not known yet."""

    kind: Literal["gpu", "cpu"]
    name: str
    memory: int | None
    has_bfloat16: bool
    has_flash_attention: bool
    cores: int


@dataclass(frozen=True)
class StepShape:
    """The inputs of the memory estimate: rows per batch, tokens per row, and how they are computed."""

    batch: int
    length: int
    packed: bool
    autocast: bool
    checkpointing: bool


@dataclass(frozen=True)
class ModelTraits:
    """What a model supports. `kernels`: of attention, the fastest first.

    `mixes_rows`: why rows that are packed together would affect each other in this model; None: they stay apart.
    """

    name: str = "the model"
    kernels: tuple[Kernel, ...] = ("flash_attention_2", "sdpa", "eager")
    mixes_rows: str | None = None
    can_checkpoint: bool = True


def find_group_batches(choices: list[Choice]) -> int | None:
    """Return `group_batches` of the profile's choices; None where rows are not grouped, or as transformers groups."""
    return next((choice.group_batches for choice in choices if choice.group_batches), None)


# Returns the bytes that a process needs at its peak; None: they can't be estimated for this model.
PeakEstimator = Callable[[StepShape], int | None]


def choose_profile(
    training: TrainingArguments,
    device: TrainingDevice,
    rows: SplitReport,
    limit: int,
    peak: PeakEstimator,
    traits: ModelTraits,
) -> list[Choice]:
    """Choose what `training` leaves out. `limit`: the tokens to which a row is cut or packed."""
    written = training.get_sft_arguments()
    found: list[Choice] = []

    def chosen(field: str, default: Any) -> Any:
        return next((choice.value for choice in found if choice.field == field), written.get(field, default))

    if not {"bf16", "fp16"} & written.keys():
        found.append(_choose_autocast(device))
    autocast = bool(chosen("bf16", False) or chosen("fp16", False))
    found.append(_choose_attention(device, autocast, traits))
    longest = min(limit, rows.lengths.max)
    row_by_row = device.kind == "cpu" and not {BATCH, ACCUMULATION} & written.keys()
    if not row_by_row and not {"packing", "train_sampling_strategy", "padding_free"} & written.keys():
        # Packed rows are fewer: a given batch size or number of steps would then mean more rows.
        may_pack = found[-1].value == "flash_attention_2" and not {BATCH, "max_steps"} & written.keys()
        may_pack = may_pack and traits.mixes_rows is None
        found += _choose_order(rows, longest, may_pack)
    packed = bool(chosen("packing", False))
    if device.memory is not None:
        step = StepShape(1, limit if packed else longest, packed, autocast, False)
        found += _choose_batch(written, device.name, device.memory, rows, step, row_by_row, peak, traits)
    elif not traits.can_checkpoint and "activation_checkpointing" not in written:
        found.append(_choose_no_checkpointing(traits))
    if "dataloader_num_workers" not in written and device.kind == "gpu":
        workers = max(0, min(WORKERS, device.cores - 1))
        why = f"{workers} of {device.cores} cores prepare batches while the GPU computes"
        found.append(Choice(field="dataloader_num_workers", value=workers, why=why, effect="none"))
    return found


def _choose_autocast(device: TrainingDevice) -> Choice:
    if device.has_bfloat16:
        return Choice(field="bf16", value=True, why=f"{device.name} computes in bfloat16", effect="rounding")
    why = f"{device.name} has no bfloat16 instructions: autocast would be slower"
    return Choice(field="bf16", value=False, why=why, effect="rounding")


def _choose_attention(device: TrainingDevice, autocast: bool, traits: ModelTraits) -> Choice:
    flash, sdpa = "flash_attention_2" in traits.kernels, "sdpa" in traits.kernels
    if device.kind == "gpu" and device.has_flash_attention and autocast and flash:
        why = "FlashAttention is installed, and needs no padding"
        return Choice(field=ATTENTION, value="flash_attention_2", why=why, effect="rounding")
    if not sdpa:
        why = f"{traits.name} supports no fused kernel" + (" but FlashAttention's" if flash else "")
        return Choice(field=ATTENTION, value="eager", why=why, effect="none")
    without = "FlashAttention is missing" if flash else f"FlashAttention can't be used for {traits.name}"
    why = "torch has a fused kernel of its own" + ("" if device.kind == "cpu" else f", and {without}")
    return Choice(field=ATTENTION, value="sdpa", why=why, effect="none")


def _choose_no_checkpointing(traits: ModelTraits) -> Choice:
    why = f"{traits.name} does not support it"
    return Choice(field="activation_checkpointing", value=False, why=why, effect="none")


def _choose_order(rows: SplitReport, longest: int, may_pack: bool) -> list[Choice]:
    most = min(rows.lengths.p95, longest)
    if most < SPREAD * rows.lengths.p50:
        return []
    lengths = f"rows have {rows.lengths.p50} tokens (median) to {most} (95 %)"
    if may_pack:
        why = f"{lengths}, and packed rows need no padding"
        return [Choice(field="packing", value=True, why=why, effect="packing")]
    why = f"{lengths}: batches of like lengths are padded less"
    return [
        Choice(
            field="train_sampling_strategy",
            value="group_by_length",
            why=why,
            effect="order",
            group_batches=GROUP_BATCHES,
        )
    ]


def _choose_batch(
    written: dict[str, Any],
    device: str,
    memory: int,
    rows: SplitReport,
    step: StepShape,
    row_by_row: bool,
    peak: PeakEstimator,
    traits: ModelTraits,
) -> list[Choice]:
    """Choose rows per batch, accumulation and activation checkpointing: the same rows a step, as fast as memory allows.

    When memory can't be estimated, the batch is one row, and activations are recomputed.
    """
    batch, accumulation = written.get(BATCH), written.get(ACCUMULATION)
    together = (batch or BATCH_OF_TRL) * (accumulation or 1)
    if step.packed and batch is None:
        rows_in_one = step.length * rows.rows / max(rows.tokens - rows.truncated_tokens, 1)
        together = max(1, round(together / rows_in_one))
    sizes = [size for size in range(together, 0, -1) if together % size == 0]
    if batch:
        sizes = [batch]
    elif accumulation:
        sizes = [max(1, together // accumulation)]
    elif row_by_row:
        sizes = [1]
    checkpointing = written.get("activation_checkpointing")
    ways = ([False, True] if traits.can_checkpoint else [False]) if checkpointing is None else [checkpointing]
    steps = [replace(step, batch=size, checkpointing=way) for way in ways for size in sizes]
    best = next((one for one in steps if _fits(peak(one), memory)), steps[-1])
    needed = peak(best)
    has = f"{device} has {format_gib(memory)}"
    found = []
    if checkpointing is None and not traits.can_checkpoint:
        found.append(_choose_no_checkpointing(traits))
    elif checkpointing is None:
        less = peak(replace(best, checkpointing=False))
        why = UNKNOWN
        if less is not None:
            would = "would be" if best.checkpointing else "are"
            why = f"about {format_gib(less)} {would} needed without it, and {has}"
        found.append(Choice(field="activation_checkpointing", value=best.checkpointing, why=why, effect="none"))
    if batch is None and best.batch != BATCH_OF_TRL:
        effect: Effect = "packing" if step.packed else "rounding"
        what = "packed rows" if step.packed else "rows"
        why = UNKNOWN
        if needed is not None:
            why = f"{together} {what} a step take about {format_gib(needed)} so, and {has}"
        if row_by_row:
            why = "a row alone needs no padding" + (
                f", and takes about {format_gib(needed)}" if needed is not None else ""
            )
        found.append(Choice(field=BATCH, value=best.batch, why=why, effect=effect))
        if accumulation is None and together > best.batch:
            why = f"that keeps {together} rows a step"
            found.append(Choice(field=ACCUMULATION, value=together // best.batch, why=why, effect="rounding"))
    return found


def _fits(needed: int | None, memory: int) -> bool:
    return needed is not None and needed <= memory
