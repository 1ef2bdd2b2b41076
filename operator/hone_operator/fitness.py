"""Whether an engine can serve what was resolved, judged before a pod is made."""

from hone_api.inferenceservice import InferenceServiceSpec
from hone_api.reasons import ADAPTER_MISMATCH, INVALID_SPEC, MODEL_TOO_LARGE, HoneError

from hone_operator.engines import Engine
from hone_operator.quantity import number
from hone_operator.resolve import Adapter, Resolved

GB = 1 << 30
USABLE = 0.9
"""Share of a GPU's memory that vLLM takes by default, for weights and cache together."""
WEIGHT_BYTES = {"float32": 4}
LARGEST_RANK = 512


def check(
    engine: Engine, spec: InferenceServiceSpec, resolved: Resolved, image: str | None, gpu: tuple[str, int] | None
) -> None:
    """Raises HoneError with both sides of what does not fit. `gpu`: name and bytes of the largest that there is."""
    if image is None:
        message = f"spec.engine is {engine.NAME}, and the operator was installed without an image for it"
        remedy = f"Set spec.pod.image, or the chart's value runtime.{engine.NAME}Image."
        raise HoneError(INVALID_SPEC, message, remedy=remedy)
    if not engine.PROVES:
        for adapter in resolved.all_adapters:
            _check_adapter(engine, adapter)
    if resolved.parameters:
        _check_memory(spec, resolved, resolved.parameters, gpu)


def _check_adapter(engine: Engine, adapter: Adapter) -> None:
    lora = adapter.lora
    if lora is None:
        return
    remedy = "Set spec.engine: embedded, or train it with output.save: merged."
    wrong = {
        "lora.useDora true": lora.use_dora,
        f"lora.bias {lora.bias}": lora.bias != "none",
        f"lora.r {lora.r} (the largest is {LARGEST_RANK})": lora.r > LARGEST_RANK,
    }
    for found in (found for found, is_wrong in wrong.items() if is_wrong):
        message = f"Adapter {adapter.name} was trained with {found}, which {engine.NAME} can't load"
        raise HoneError(ADAPTER_MISMATCH, message, remedy=remedy)


def _check_memory(spec: InferenceServiceSpec, resolved: Resolved, parameters: int, gpu: tuple[str, int] | None) -> None:
    needed, wanted = parameters * WEIGHT_BYTES.get(resolved.weights.dtype, 2), spec.resources
    if wanted.gpus and gpu:
        name, memory = gpu
        room, where = USABLE * memory * wanted.gpus, f"{wanted.gpus} of {name} have"
        remedy = "Raise spec.resources.gpus, or choose larger GPUs."
    elif wanted.memory and not wanted.gpus:
        room, where, remedy = number(wanted.memory), "spec.resources.memory leaves", "Raise spec.resources.memory."
    else:
        return
    if needed > room:
        weights = f"The weights of {resolved.weights.name} alone take {needed / GB:.1f} GiB ({parameters} parameters)"
        raise HoneError(MODEL_TOO_LARGE, f"{weights}, and {where} {room / GB:.1f} GiB for them", remedy=remedy)
