"""What optimizers keep for each trained parameter, and what one step needs in addition.

Sources: torch.optim (states are made with zeros_like, so in the parameter's dtype; `foreach` implementations hold
temporaries as large as the parameters, according to torch's documentation), bitsandbytes' documentation (8-bit states
have one byte per value and a 4-byte scale for every 256 values; those of tensors below 4,096 values stay in 32 bits,
which is ignored here; for the place of paged states see paging.py), transformers' Adafactor (row and column means
only).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class OptimizerMemory:
    """States in the parameter's dtype (`states`) or of a fixed size (`bytes`), and copies made within a step."""

    states: float = 0
    bytes: float = 0
    copies: float = 0

    def count_state_bytes(self, parameters: int, parameter_bytes: int) -> int:
        """Return the bytes kept between steps."""
        return int(parameters * (self.states * parameter_bytes + self.bytes))

    def count_step_bytes(self, parameters: int, parameter_bytes: int) -> int:
        """Return the bytes that a step holds in addition."""
        return int(parameters * self.copies * parameter_bytes)


_EIGHT_BITS = 1 + 4 / 256

_KNOWN = {
    "adamw_torch_fused": OptimizerMemory(states=2),
    "adamw_torch": OptimizerMemory(states=2, copies=1),
    "adamw_torch_xla": OptimizerMemory(states=2, copies=1),
    "adamw_torch_npu_fused": OptimizerMemory(states=2),
    "adamw_anyprecision": OptimizerMemory(bytes=2 + 4 + 2),
    "adamw_torch_4bit": OptimizerMemory(bytes=2 * (0.5 + 4 / 128)),
    "adamw_torch_8bit": OptimizerMemory(bytes=2 * _EIGHT_BITS),
    "adamw_bnb_8bit": OptimizerMemory(bytes=2 * _EIGHT_BITS),
    "adamw_8bit": OptimizerMemory(bytes=2 * _EIGHT_BITS),
    "paged_adamw_8bit": OptimizerMemory(bytes=2 * _EIGHT_BITS),
    "paged_adamw_32bit": OptimizerMemory(bytes=8),
    "ademamix": OptimizerMemory(bytes=12),
    "paged_ademamix_32bit": OptimizerMemory(bytes=12),
    "ademamix_8bit": OptimizerMemory(bytes=3 * _EIGHT_BITS),
    "paged_ademamix_8bit": OptimizerMemory(bytes=3 * _EIGHT_BITS),
    "lion_32bit": OptimizerMemory(bytes=4),
    "paged_lion_32bit": OptimizerMemory(bytes=4),
    "lion_8bit": OptimizerMemory(bytes=_EIGHT_BITS),
    "paged_lion_8bit": OptimizerMemory(bytes=_EIGHT_BITS),
    "rmsprop": OptimizerMemory(states=1, copies=1),
    "rmsprop_bnb": OptimizerMemory(bytes=4),
    "rmsprop_bnb_32bit": OptimizerMemory(bytes=4),
    "rmsprop_bnb_8bit": OptimizerMemory(bytes=_EIGHT_BITS),
    "adagrad": OptimizerMemory(states=1, copies=1),
    "sgd": OptimizerMemory(),
    "adafactor": OptimizerMemory(bytes=0.01, copies=0),
}

# For an optimizer that is not in the table: two states in float32.
UNKNOWN = OptimizerMemory(bytes=8, copies=1)


def get_optimizer_memory(name: str) -> OptimizerMemory:
    """Return the optimizer that transformers calls by this name."""
    return _KNOWN.get(name, UNKNOWN)


def is_paged(name: str) -> bool:
    """Return whether bitsandbytes keeps the optimizer's states in managed memory."""
    return name.startswith("paged_")


def is_known(name: str) -> bool:
    """Return whether the optimizer's states are known, rather than assumed to be two in float32."""
    return name in _KNOWN
