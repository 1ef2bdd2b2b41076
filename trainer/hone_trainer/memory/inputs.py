"""Inputs of the estimate: the shape of a model, and how it is trained. Plain numbers, no torch.

`architecture` reads them from a model, `plan` from a spec, and `formulas` computes with them. Tests give them as
numbers.
"""

from dataclasses import dataclass
from typing import Literal

Method = Literal["lora", "qlora", "full"]
Sharding = Literal["none", "ddp", "fsdp"]
DeviceKind = Literal["gpu", "cpu"]


@dataclass(frozen=True)
class Architecture:
    """A decoder's shape. Counts are of parameters; widths are of the activations that one token has in a layer.

    `linear` counts the parameters in linear layers outside the output head, which qlora keeps in 4 bits. `layer` is the
    largest decoder layer, `matrices` its weights with two or more dimensions, which autocast casts, `widest` the
    largest of them. `norm_width` is the sum of the widths of the inputs of a layer's norms. A dense model has 0
    experts.
    """

    total: int
    layers: int
    layer: int
    matrices: int
    widest: int
    linear: int
    head: int
    embedding: int
    tied: bool
    hidden: int
    query_width: int
    key_value_width: int
    heads: int
    intermediate: int
    gated: bool
    norm_width: int
    vocabulary: int
    experts: int = 0
    experts_per_token: int = 0
    weight_bytes: int = 2


@dataclass(frozen=True)
class AdapterShape:
    """The parameters that LoRA adds. `inputs` and `outputs`: summed widths of a decoder layer's adapted linear layers.

    `experts`: parameters of a layer's experts that are adapted (PEFT adds their update to a copy of the weights).
    """

    parameters: int
    trainable: int
    layer_parameters: int
    targets: int
    inputs: int
    outputs: int
    rank: int
    dropout: bool
    experts: int = 0
    dora: bool = False


@dataclass(frozen=True)
class MemorySettings:
    """One training process. `length` is the tokens of the longest row (or of a packed one), `batch` the rows of a step.

    `mixed` is bf16 or fp16 autocast; `packed`: a batch is one row of batch * length tokens; `accumulation`: gradients
    outlive a batch; `full_logits`: the loss needs those of all tokens (label smoothing); `eager`: attention without a
    fused kernel, which keeps its scores; `pages`: the optimizer's states are in the host's memory.
    """

    architecture: Architecture
    method: Method
    adapter: AdapterShape | None
    batch: int
    length: int
    checkpointing: bool
    mixed: bool
    optimizer: str = "adamw_torch_fused"
    accumulation: bool = False
    packed: bool = False
    full_logits: bool = False
    processes: int = 1
    sharding: Sharding = "none"
    device: DeviceKind = "gpu"
    eager: bool = False
    pages: bool = False

    @property
    def tokens(self) -> int:
        """Tokens that one process computes at once."""
        return self.batch * self.length

    @property
    def trainable(self) -> int:
        """Trained parameters, before sharding."""
        return self.adapter.trainable if self.adapter else self.architecture.total
