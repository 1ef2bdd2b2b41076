"""FSDP2: each process holds a part of every weight."""

from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from peft import PeftModel
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor
from transformers import TrainingArguments


def enable(accelerator: Accelerator, args: TrainingArguments) -> None:
    """Turn it on where accelerate leaves it out without a word: on CPUs it trains with DDP instead."""
    plugin: Any = FullyShardedDataParallelPlugin(**args.fsdp_plugin_args)
    if accelerator.mixed_precision != "no":
        plugin.set_mixed_precision(accelerator.mixed_precision)
    accelerator.state.fsdp_plugin = plugin
    accelerator.state.distributed_type = DistributedType.FSDP
    PartialState._shared_state["distributed_type"] = DistributedType.FSDP


def own_part(tensor: torch.Tensor) -> torch.Tensor:
    """What this process holds of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gather(network: Any) -> dict[str, Any] | None:
    """The whole weights in the first process's memory (of an adapter: its own), nothing in the others; None when each
    process has them all anyway. To be called in all processes."""
    if not any(isinstance(found, DTensor) for found in network.parameters()):
        return None
    only_trained = isinstance(network, PeftModel)
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=only_trained)
    return get_model_state_dict(network, options=options)
