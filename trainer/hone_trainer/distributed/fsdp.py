"""FSDP2: each process holds a shard of every weight."""

from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from peft import PeftModel
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor
from transformers import TrainingArguments


def enable_fsdp(accelerator: Accelerator, args: TrainingArguments) -> None:
    """Turn on FSDP2 where accelerate silently leaves it out: on CPUs accelerate trains with DDP instead."""
    plugin: Any = FullyShardedDataParallelPlugin(**args.fsdp_plugin_args)
    if accelerator.mixed_precision != "no":
        plugin.set_mixed_precision(accelerator.mixed_precision)
    accelerator.state.fsdp_plugin = plugin
    accelerator.state.distributed_type = DistributedType.FSDP
    PartialState._shared_state["distributed_type"] = DistributedType.FSDP


def get_local_shard(tensor: torch.Tensor) -> torch.Tensor:
    """Return the shard of a tensor that this process holds."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gather_full_weights(network: Any) -> dict[str, Any] | None:
    """Return the full weights (of an adapter: only its own) in the first process's memory, and nothing in the others.

    Return None when each process has all weights anyway. Must be called in all processes.
    """
    if not any(isinstance(found, DTensor) for found in network.parameters()):
        return None
    only_trained = isinstance(network, PeftModel)
    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=only_trained)
    return get_model_state_dict(network, options=options)
