"""What engines must know of a base model before they are started."""

from typing import Any

import torch
from hone_api.artifacts.manifest import BaseConfig
from transformers import PreTrainedConfig

from hone_trainer.models.quantization import quantized

BYTES = 2
"""Of a key or value in 16 bits."""


def read(config: PreTrainedConfig, network: torch.nn.Module) -> BaseConfig:
    """`config` is the checkpoint's, `network` the model as it was trained, with an adapter or without."""
    return BaseConfig(
        architecture=next(iter(config.architectures or []), None),
        quantization=quantized(config),
        embedding_modules=embedding_modules(network),
        cache_bytes_per_token=cache_bytes_per_token(config.get_text_config()),
    )


def embedding_modules(network: Any) -> list[str]:
    """The last parts of their names, as `targetModules` has them."""
    wanted = {id(network.get_input_embeddings()), id(network.get_output_embeddings())}
    return [name.rpartition(".")[2] for name, module in network.named_modules() if id(module) in wanted]


def cache_bytes_per_token(config: Any) -> int | None:
    """Keys and values of the layers that keep those of every token; None: the configuration leaves it open.

    Layers with a sliding window, or with a state in place of a cache, are not counted, so this is what is needed at
    least. Latent attention (DeepSeek's MLA) and caches that layers share are kept differently by each engine.
    """
    heads, layers = getattr(config, "num_key_value_heads", None), getattr(config, "num_hidden_layers", None)
    kinds = getattr(config, "layer_types", None)
    differs = any(getattr(config, name, None) for name in ("kv_lora_rank", "num_kv_shared_layers"))
    if not heads or not layers or differs or (kinds is None and getattr(config, "sliding_window", None)):
        return None
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    whole = layers if kinds is None else list(kinds).count("full_attention")
    return int(2 * whole * heads * size * BYTES) or None
