"""Check whether an engine can serve what was resolved, before a pod is created.

Only rules that hold for every version of an engine are checked here. Rules that differ between versions (kinds of
quantization, architectures, layers that adapters may change, shares of the memory) are checked by the engine itself
in its pod: inferenceservice/children.py, `_build_check_container`.
"""

from hone_api.artifacts.adapter_rules import MAX_LORA_RANK, list_refused_settings
from hone_api.byte_sizes import format_gib_or_mib
from hone_api.finetunejobs.spec import LoraOptions
from hone_api.inferenceservices.spec import InferenceServiceSpec
from hone_api.reasons import ADAPTER_MISMATCH, INVALID_SPEC, MODEL_TOO_LARGE, HoneError

from hone_operator.engines.engine import Engine
from hone_operator.engines.resolve import ResolvedModels
from hone_operator.objects.quantity import parse_number

BYTES_PER_VALUE = {"float32": 4}
# Beginnings of arguments by which a user changes how much memory is needed or available.
MEMORY_FLAGS = (
    "--gpu-memory-utilization",
    "--mem-fraction-static",
    "--cuda-memory-fraction",
    "--kv-cache-dtype",
    "--max-model-len",
    "--context-length",
    "--max-total-tokens",
    "--quantiz",
    "--cpu-offload",
    "--pipeline-parallel-size",
    "--pp-size",
    "--dtype",
)


def check_compatibility(
    engine: Engine, spec: InferenceServiceSpec, resolved: ResolvedModels, image: str | None, gpu: tuple[str, int] | None
) -> None:
    """Check the parts. `gpu`: name and bytes of the largest GPU. Raises HoneError with both sides of a mismatch."""
    if image is None:
        message = f"spec.engine is {engine.name}, and the operator was installed without an image for it"
        remedy = f"Set spec.pod.image, or the chart's value runtime.{engine.name}Image."
        raise HoneError(INVALID_SPEC, message, remedy=remedy)
    for adapter in resolved.all_adapters:
        if adapter.lora and not engine.verifies_artifacts:
            _check_kind(engine, adapter.name, adapter.lora)
    if not any(argument.startswith(MEMORY_FLAGS) for argument in spec.extra_args):
        _check_memory(engine, spec, resolved, gpu)


def _check_kind(engine: Engine, name: str, lora: LoraOptions) -> None:
    """Raise HoneError for an adapter that these engines refuse in all their versions."""
    settings = {"use_dora": "lora.useDora true", "bias": f"lora.bias {lora.bias}"}
    refused = [settings[name] for name in list_refused_settings(use_dora=lora.use_dora, bias=lora.bias)]
    if lora.r > MAX_LORA_RANK:
        refused.append(f"lora.r {lora.r} (the largest is {MAX_LORA_RANK})")
    for found in refused:
        message = f"Adapter {name} was trained with {found}, which {engine.name} can't load"
        remedy = "Set spec.engine: embedded, or train it with spec.output.save: merged and serve that as spec.model."
        raise HoneError(ADAPTER_MISMATCH, message, remedy=remedy)


def _check_memory(
    engine: Engine, spec: InferenceServiceSpec, resolved: ResolvedModels, gpu: tuple[str, int] | None
) -> None:
    """Raise HoneError unless the weights fit, and the KV cache of one request of spec.maxModelLen tokens."""
    parameters, length, resources = resolved.parameter_count, spec.max_model_len, spec.resources
    if not parameters or resolved.base_config.quantization:
        return
    if resources.gpus and gpu:
        name, memory = gpu
        room, where = float(memory * resources.gpus), f"{resources.gpus} of {name} have"
        remedy = "Raise spec.resources.gpus, or choose larger GPUs."
    elif resources.memory and not resources.gpus:
        room, where, remedy = (
            parse_number(resources.memory),
            "spec.resources.memory leaves",
            "Raise spec.resources.memory.",
        )
    else:
        return
    size = BYTES_PER_VALUE.get(resolved.weights.dtype, 2)
    weights, share = parameters * size, 1.0 if resources.gpus else engine.cache_share
    cache = (length or 0) * (resolved.base_config.cache_bytes_per_token or 0) * size / 2
    needed = (
        f"The weights of {resolved.weights.name} alone take {format_gib_or_mib(weights, 1)} ({parameters} parameters)"
    )
    if weights > room:
        raise HoneError(MODEL_TOO_LARGE, f"{needed}, and {where} {format_gib_or_mib(room, 1)} for them", remedy=remedy)
    if cache > share * (room - weights):
        message = (
            f"{needed}, and {where} {format_gib_or_mib(room, 1)}; for the key-value cache that leaves "
            f"{format_gib_or_mib(share * (room - weights), 1)}, and spec.maxModelLen {length} needs "
            f"{format_gib_or_mib(cache, 1)}"
        )
        raise HoneError(MODEL_TOO_LARGE, message, remedy=f"Lower spec.maxModelLen. {remedy}")
