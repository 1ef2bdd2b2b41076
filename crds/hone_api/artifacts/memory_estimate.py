"""The estimate of the device memory that a training process needs."""

from typing import Annotated, Literal

from pydantic import Field

from hone_api.common import ForeignModel

Bytes = Annotated[int, Field(ge=0)]


class Estimate(ForeignModel):
    """Device memory of one process at its peak, in bytes; the parts add up to `total`."""

    processes: Annotated[int, Field(ge=1)] = Field(description="Training processes, one for each device.")
    batch: Annotated[int, Field(ge=1)] = Field(description="Rows that a process computes at once.")
    length: Annotated[int, Field(ge=1)] = Field(description="Tokens of the longest row.")
    peak: Literal["loss", "backward", "embedding", "step"] = Field(
        description="When most is needed: computing the loss, in the layers' backward pass, at its end in the "
        "embedding, or in the optimizer's step."
    )
    weights: Bytes = Field(description="The model's and the adapter's parameters.")
    gradients: Bytes = Field(description="Gradients that exist at the peak.")
    optimizer_states: Bytes = Field(description="What the optimizer keeps, and holds during its step.")
    activations: Bytes = Field(description="What the forward pass keeps for the backward pass, and its working set.")
    logits: Bytes = Field(description="Working set of the output head and the loss.")
    communication: Bytes = Field(description="Buffers of DDP or FSDP2.")
    allowance: Bytes = Field(
        description="Not computed but allowed for: runtime, libraries' work spaces, fragmentation."
    )
    total: Bytes = Field(description="The sum.")

    @property
    def computed(self) -> int:
        """Return the bytes that training itself allocates: the total without the allowance."""
        return self.total - self.allowance
