"""From a FineTuneJob to its memory, for `hone plan` and for the stage before training.

Input is the spec and the model on the meta device; output is a Plan with the Settings that `formulas` estimates.
`advice` and `render` turn the estimate into suggestions and text.
"""

from dataclasses import dataclass, replace
from typing import Any

from hone_api.artifacts.trainer_reports import Parameters
from hone_api.finetunejobs.spec import FineTuneJobSpec, LoraOptions
from hone_api.reasons import HoneError

from hone_trainer.memory import optimizer_states, paging
from hone_trainer.memory.inputs import AdapterShape, Architecture, MemorySettings, Sharding

# SFTConfig's per_device_train_batch_size and max_length.
BATCH, LENGTH = 8, 1024

WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class MemoryPlan:
    """The settings and parameters of a job. `adapter` is what method lora would train, even when the method is full.

    `settings` is None when the formulas do not cover the model, and `unestimated` is the reason.
    """

    settings: MemorySettings | None
    parameters: Parameters
    adapter: AdapterShape | None
    notes: tuple[str, ...] = ()
    unestimated: str = ""


def make_memory_plan(
    spec: FineTuneJobSpec,
    network: Any,
    *,
    length: int | None = None,
    processes: int = 0,
    sharding: Sharding | None = None,
) -> MemoryPlan:
    """Return the plan for a model on the meta device, to which the adapter is added.

    `length` is that of the longest row, if known. Raises HoneError InvalidSpec.
    """
    from hone_api.attention import choose_default_kernel

    from hone_trainer.memory import architecture

    config = network.config
    total = architecture.count_parameters(network)
    notes = _make_notes(spec, config)
    try:
        shape = architecture.read_architecture(network)
        adapter = _measure_adapter(spec, network)
    except architecture.UnestimatedError as error:
        return MemoryPlan(None, _count_parameters(spec, network, total), None, notes, str(error))
    if spec.model.dtype != "auto":
        shape = replace(shape, weight_bytes=WIDTHS[spec.model.dtype])
    own = None if spec.method == "full" else adapter
    settings = make_settings(
        spec, shape, own, length=length or _find_length(spec, config), processes=processes, sharding=sharding
    )
    settings = replace(settings, eager=choose_default_kernel(network) == "eager")
    notes = (*notes, *paging.find_warnings(spec, settings))
    parameters = Parameters(trainable=settings.trainable, total=total + (own.parameters if own else 0))
    return MemoryPlan(settings, parameters, adapter, notes)


def _make_notes(spec: FineTuneJobSpec, config: Any) -> tuple[str, ...]:
    """Return the assumptions of the estimate."""
    from hone_trainer.models import quantization

    notes = []
    how = quantization.get_quantization_method(config)
    if how:
        notes.append(f"the checkpoint is quantized ({how}); its weights are counted as if they were not")
    if getattr(config, "dtype", None) is None and spec.model.dtype == "auto":
        notes.append("config.json names no dtype; float32 is assumed")
    optimizer = spec.training.get_sft_arguments().get("optim", "adamw_torch_fused")
    if not optimizer_states.is_known(optimizer):
        notes.append(f"spec.training.optim is {optimizer}, whose states are taken as 8 bytes a parameter")
    return tuple(notes)


def _measure_adapter(spec: FineTuneJobSpec, network: Any) -> AdapterShape | None:
    """Return what method lora trains; for method full, what it would train, or None when it can't train the model."""
    from hone_trainer.memory import architecture

    if spec.method != "full":
        return architecture.measure_adapter(network, spec)
    try:
        return architecture.measure_adapter(network, spec.model_copy(update={"method": "lora", "lora": LoraOptions()}))
    except HoneError:
        return None


def _count_parameters(spec: FineTuneJobSpec, network: Any, total: int) -> Parameters:
    """Count the parameters of a model that is not estimated. Raises as `make_memory_plan` does."""
    from hone_trainer.memory import architecture

    if spec.method == "full":
        return Parameters(trainable=total, total=total)
    trainable, total = architecture.apply_adapter(network, spec).get_nb_trainable_parameters()
    return Parameters(trainable=int(trainable), total=int(total))


def get_sharding(spec: FineTuneJobSpec) -> Sharding:
    """Return how the spec's GPUs share the model; for training.parallelism auto, what is tried first."""
    if count_planned_processes(spec) < 2:
        return "none"
    return "fsdp" if spec.training.parallelism == "fsdp" else "ddp"


def count_planned_processes(spec: FineTuneJobSpec) -> int:
    """Return the number of processes: one for each GPU of each node."""
    return spec.resources.nodes * max(1, spec.resources.gpus)


def make_settings(
    spec: FineTuneJobSpec,
    shape: Architecture,
    adapter: AdapterShape | None,
    *,
    length: int,
    processes: int = 0,
    sharding: Sharding | None = None,
) -> MemorySettings:
    """Return the spec's settings, with SFTConfig's defaults for missing ones (bf16 and checkpointing are on). Pure."""
    written = spec.training.get_sft_arguments()
    bf16 = written.get("bf16")
    return MemorySettings(
        architecture=shape,
        method=spec.method,
        adapter=adapter,
        batch=written.get("per_device_train_batch_size", BATCH),
        length=length,
        checkpointing=written.get("activation_checkpointing", True),
        mixed=bool(written.get("fp16") or bf16 is None or bf16),
        optimizer=written.get("optim", "adamw_torch_fused"),
        accumulation=written.get("gradient_accumulation_steps", 1) > 1,
        packed=bool(written.get("packing")) and written.get("packing_strategy") != "wrapped",
        full_logits=bool(written.get("label_smoothing_factor")),
        processes=processes or count_planned_processes(spec),
        sharding=sharding or get_sharding(spec),
        device="gpu" if spec.resources.gpus else "cpu",
        pages=paging.is_on_host(spec),
    )


def _find_length(spec: FineTuneJobSpec, config: Any) -> int:
    written = spec.training.get_sft_arguments()
    length = written.get("max_length", LENGTH)
    return int(length or getattr(config.get_text_config(), "max_position_embeddings", None) or LENGTH)
