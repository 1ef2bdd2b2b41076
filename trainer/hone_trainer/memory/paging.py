"""Where the states of paged optimizers are on ROCm. Pure.

bitsandbytes allocates them as managed memory. According to ROCm's documentation that stays in the host's memory, and
the GPU accesses it over PCI Express, unless HSA_XNACK is 1 and the GPU can retry after a page fault; virtual functions
can't. None of it was verified on a GPU. So the states count in the pod's memory; those of adapters on the device as
well, since bitsandbytes pages no tensor of fewer than 100,000 values. Next in the flow: plan.py and device_plan.py.
"""

from hone_api.byte_sizes import format_gib
from hone_api.finetunejobs.spec import FineTuneJobSpec
from hone_api.quantities import parse_exactly

from hone_trainer.memory import formulas, optimizer_states
from hone_trainer.memory.inputs import MemorySettings

RETRY = "HSA_XNACK"


def is_on_host(spec: FineTuneJobSpec) -> bool:
    """Return whether the states of the spec's optimizer are assumed to be in the host's memory."""
    can_migrate = any(variable.name == RETRY and variable.value == "1" for variable in spec.pod.env)
    return spec.resources.gpus > 0 and optimizer_states.is_paged(spec.training.optim or "") and not can_migrate


def find_warnings(spec: FineTuneJobSpec, settings: MemorySettings | None) -> list[str]:
    """Return warnings about such an optimizer. `settings` None: memory is not estimated."""
    if not is_on_host(spec):
        return []
    needed = formulas.count_host_state_bytes(settings) * spec.resources.gpus if settings else 0
    size = f", {format_gib(needed)} in each pod," if needed else ""
    memory = spec.resources.memory
    if memory is None:
        room = "spec.resources.memory, if you set it, must"
    elif needed > parse_exactly(memory):
        room = f"spec.resources.memory, which is {memory} and so too small, must"
    else:
        room = f"spec.resources.memory ({memory}) must also"
    return [
        f"spec.training.optim is {spec.training.optim}: by ROCm's documentation its states{size} lie in the host's "
        f"memory, and each step waits for PCI Express. {room} have room for them. Set spec.training.optim: "
        f"adamw_8bit or adamw_torch_fused, whose states lie on the GPU. Or add {{name: {RETRY}, value: '1'}} to "
        "spec.pod.env, where the GPU supports it"
    ]
