"""A plan as text for a person.

`command` prints all of it for `hone plan`; `preparation.prepare` prints the one line of `describe_estimate`.
"""

from hone_api.artifacts.memory_estimate import Estimate
from hone_api.byte_sizes import format_gib
from hone_api.gpus import GPUS, Gpu

from hone_trainer.memory import advice
from hone_trainer.memory.formulas import (
    FRAGMENTATION,
    count_host_only_bytes,
    count_host_state_bytes,
    estimate_memory,
)
from hone_trainer.memory.inputs import AdapterShape, MemorySettings
from hone_trainer.memory.plan import MemoryPlan

PEAKS = {
    "loss": "while the loss is computed",
    "backward": "in the backward pass",
    "embedding": "at the end of the backward pass",
    "step": "in the optimizer's step",
}


def render_plan(plan: MemoryPlan) -> str:
    """Return the parameters as PEFT prints them, the parts of the memory, the GPUs that fit, or else what to lower."""
    if plan.settings is None:
        return f"{plan.parameters.describe()}\n\n{describe_unestimated(plan.unestimated)}"
    found = estimate_memory(plan.settings)
    lines = [plan.parameters.describe(), "", render_heading(plan.settings, found), *render_table(found), ""]
    if plan.settings.device == "cpu":
        return "\n".join(
            [*lines, "spec.resources.gpus is 0: this is the host's memory, in addition to that of Python itself"]
        )
    if states := count_host_state_bytes(plan.settings):
        what = "optimizer states in the host's memory, a process"
        lines += [f"  {what:<56}{format_gib(states, 2):>14}", ""]
    return "\n".join([*lines, *render_verdict(plan.settings, plan.adapter, found)])


def describe_unestimated(why: str) -> str:
    """Return the line that is printed instead of an estimate."""
    return f"memory: not estimated: {why}"


def describe_estimate(found: Estimate | None, gpus: int, *, uses_host: bool = False) -> str:
    """Return one line: the memory needed, and the GPUs, or this machine, that it has to fit on.

    `uses_host`: states are in the host's memory, so GPUs that share it are not named.
    """
    if found is None:
        return "memory: not estimated"
    needed = f"memory: about {format_gib(found.total)} (batch {found.batch}, up to {found.length:,} tokens a row)"
    if not gpus:
        return f"{needed} of the host's"
    named = tuple(gpu for gpu in GPUS if not (uses_host and gpu.shares_host_memory))
    fitting = ", ".join(gpu.name for gpu in advice.find_fitting_gpus(found, named))
    return f"{needed} a device, which fits {fitting or 'no Instinct GPU'}"


def render_heading(settings: MemorySettings, found: Estimate) -> str:
    """Return the heading, which describes what was estimated."""
    checkpointing = "on" if settings.checkpointing else "off"
    several = f", one of {found.processes} processes with {settings.sharding.upper()}" if found.processes > 1 else ""
    return (
        f"Memory of a device, method {settings.method}, batch {found.batch}, up to {found.length:,} tokens a row, "
        f"activation checkpointing {checkpointing}{several}.\nMost is needed {PEAKS[found.peak]}:"
    )


def render_table(found: Estimate) -> list[str]:
    """Return one line for each part that is not 0, then the sum."""
    allowed = f"allowance: runtime, {FRAGMENTATION:.0%} fragmentation"
    parts = [
        ("weights", found.weights),
        ("gradients", found.gradients),
        ("optimizer states", found.optimizer_states),
        ("activations", found.activations),
        ("logits and loss", found.logits),
        ("communication", found.communication),
        (allowed, found.allowance),
        ("total", found.total),
    ]
    return [f"  {name:<56}{format_gib(size, 2):>14}" for name, size in parts if size]


def render_verdict(settings: MemorySettings, adapter: AdapterShape | None, found: Estimate) -> list[str]:
    """Return which GPUs it fits, with what is left; if none, what to lower for the largest and for the smallest."""
    host = count_host_only_bytes(settings)
    fitting = advice.find_fitting_gpus(found, GPUS, host)
    lines = [f"  {_describe_gpu(gpu):<54}{_describe_room(gpu, found, host)}" for gpu in GPUS]
    if fitting:
        return ["Fits" if len(fitting) == len(GPUS) else "Fits some", *lines]
    advised = []
    for memory in sorted({gpu.memory for gpu in GPUS}, reverse=True):
        changes = advice.suggest_changes(settings, memory, adapter)
        advised += [f"  {format_gib(memory)}: {change} ({format_gib(change.estimate.total)})" for change in changes]
    return ["Fits none", *lines, "", "To fit, set", *(advised or ["  nothing that Hone knows: take a smaller model"])]


def _describe_gpu(gpu: Gpu) -> str:
    return f"{gpu.name}, {format_gib(gpu.memory)}" + (f" ({gpu.note})" if gpu.note else "")


def _describe_room(gpu: Gpu, found: Estimate, host: int) -> str:
    left = advice.get_free_bytes(found, gpu, host)
    return f"{format_gib(left)} left" if left >= 0 else f"{format_gib(-left)} too little"
