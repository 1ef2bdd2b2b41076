"""Whether a job fits on a device, and if not, which fields to set to which values. Pure.

Input is the Settings of `plan` and a device's memory. Each suggestion is estimated again with `formulas`, so that the
job really fits when it is followed. `device_plan` raises the failure; `render` prints the suggestions for `hone plan`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from hone_api.artifacts.memory_estimate import Estimate
from hone_api.byte_sizes import format_gib
from hone_api.gpus import Gpu
from hone_api.reasons import MODEL_TOO_LARGE, HoneError

from hone_trainer.memory import optimizer_states
from hone_trainer.memory.formulas import estimate_memory
from hone_trainer.memory.inputs import AdapterShape, MemorySettings

# Tokens below which no length is suggested.
SHORTEST = 128


@dataclass(frozen=True)
class SpecChange:
    """Fields of the spec with new values, and the resulting estimate."""

    fields: tuple[tuple[str, str], ...]
    estimate: Estimate

    def __str__(self) -> str:
        return " and ".join(f"{name}: {value}" for name, value in self.fields)


def fits_memory(found: Estimate, memory: int) -> bool:
    """Return whether an estimate, including its allowance, is at most a device's memory in bytes."""
    return found.total <= memory


def suggest_changes(settings: MemorySettings, memory: int, adapter: AdapterShape | None = None) -> list[SpecChange]:
    """Return what makes a job fit into `memory` bytes: every single field that does, else the fewest fields together.

    `adapter` is what method lora would train, for a job whose method is full. An empty list: nothing known makes it
    fit.
    """
    alone = [
        SpecChange(((name, value),), found)
        for steps in _propose_changes(settings, adapter)
        for name, value, found in _find_first_fit(steps, memory)
    ]
    if alone:
        return alone
    fields: dict[str, str] = {}
    current = settings
    for way in range(len(list(_propose_changes(settings, adapter)))):
        for name, value, changed in list(_propose_changes(current, adapter))[way]:
            fields[name], current = value, changed
            found = estimate_memory(current)
            if fits_memory(found, memory):
                return [SpecChange(tuple(fields.items()), found)]
    return []


def make_too_large_error(
    settings: MemorySettings, device_bytes: int, device: str = "The device", adapter: AdapterShape | None = None
) -> HoneError | None:
    """Return HoneError ModelTooLarge, with what to lower, when a device of that many bytes is too small for the job."""
    found = estimate_memory(settings)
    if fits_memory(found, device_bytes):
        return None
    message = (
        f"Training needs about {format_gib(found.total)} a device (batch {found.batch}, {found.length} tokens), and "
        f"{device} has {format_gib(device_bytes)}"
    )
    changes = suggest_changes(settings, device_bytes, adapter)
    if not changes:
        return HoneError(MODEL_TOO_LARGE, message, remedy="Take a smaller model, or a GPU with more memory.")
    ways = "; or ".join(f"{change} ({format_gib(change.estimate.total)})" for change in changes)
    return HoneError(MODEL_TOO_LARGE, message, remedy=f"Set {ways}.")


def find_fitting_gpus(found: Estimate, gpus: tuple[Gpu, ...], host_bytes: int = 0) -> list[Gpu]:
    """Return the GPUs that an estimate fits. `host_bytes` is what a process also needs of the host's memory."""
    return [gpu for gpu in gpus if get_free_bytes(found, gpu, host_bytes) >= 0]


def get_free_bytes(found: Estimate, gpu: Gpu, host_bytes: int = 0) -> int:
    """Return the bytes of a GPU that are left, negative when bytes are missing.

    `host_bytes` count when the GPU shares the host's memory.
    """
    return gpu.memory - found.total - (host_bytes if gpu.shares_host_memory else 0)


def _find_first_fit(steps: Iterator[tuple[str, str, MemorySettings]], memory: int) -> list[tuple[str, str, Estimate]]:
    for name, value, changed in steps:
        found = estimate_memory(changed)
        if fits_memory(found, memory):
            return [(name, value, found)]
    return []


def _propose_changes(
    settings: MemorySettings, adapter: AdapterShape | None
) -> Iterator[Iterator[tuple[str, str, MemorySettings]]]:
    """Yield, for each field that lowers memory, smaller and smaller values; fields with the lowest cost come first."""
    yield _propose_checkpointing(settings)
    yield _propose_halves(settings, "perDeviceTrainBatchSize", "batch", 1)
    yield _propose_optimizer(settings)
    yield _propose_methods(settings, adapter)
    yield _propose_halves(settings, "maxLength", "length", SHORTEST)


def _propose_checkpointing(settings: MemorySettings) -> Iterator[tuple[str, str, MemorySettings]]:
    if not settings.checkpointing:
        yield "spec.training.activationCheckpointing", "true", replace(settings, checkpointing=True)


def _propose_halves(
    settings: MemorySettings, field: str, name: str, least: int
) -> Iterator[tuple[str, str, MemorySettings]]:
    value = getattr(settings, name)
    while value // 2 >= least:
        value //= 2
        yield f"spec.training.{field}", str(value), replace(settings, **{name: value})


def _propose_optimizer(settings: MemorySettings) -> Iterator[tuple[str, str, MemorySettings]]:
    smaller = optimizer_states.get_optimizer_memory("adamw_8bit").count_state_bytes(1000, 4)
    if (
        settings.method == "full"
        and not settings.pages
        and optimizer_states.get_optimizer_memory(settings.optimizer).count_state_bytes(
            1000, settings.architecture.weight_bytes
        )
        > smaller
    ):
        yield "spec.training.optim", "adamw_8bit", replace(settings, optimizer="adamw_8bit")


def _propose_methods(
    settings: MemorySettings, adapter: AdapterShape | None
) -> Iterator[tuple[str, str, MemorySettings]]:
    adapter = settings.adapter or adapter
    if settings.method == "full" and adapter:
        yield "spec.method", "lora", replace(settings, method="lora", adapter=adapter)
    if settings.method != "qlora" and adapter:
        yield "spec.method", "qlora", replace(settings, method="qlora", adapter=adapter)
