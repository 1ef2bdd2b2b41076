"""What serving engines must know about a base model before they start. `pipeline` writes it to manifest.json."""

from typing import Any

import torch
from hone_api.artifacts.manifest import BaseConfig
from transformers import PreTrainedConfig

from hone_trainer.models.quantization import get_quantization_method

# Size of a key or value in 16 bits.
BYTES = 2


def read_base_config(config: PreTrainedConfig, network: torch.nn.Module) -> BaseConfig:
    """Read the facts. `config` is the checkpoint's, `network` the trained model, with or without an adapter."""
    return BaseConfig(
        architecture=next(iter(config.architectures or []), None),
        quantization=get_quantization_method(config),
        embedding_modules=find_embedding_modules(network),
        cache_bytes_per_token=count_cache_bytes_per_token(config.get_text_config()),
    )


def find_embedding_modules(network: Any) -> list[str]:
    """Return the last parts of the names of embedding and output head, as `targetModules` has them."""
    embedding_ids = {id(network.get_input_embeddings()), id(network.get_output_embeddings())}
    return [name.rpartition(".")[2] for name, module in network.named_modules() if id(module) in embedding_ids]


def count_cache_bytes_per_token(config: Any) -> int | None:
    """Return the bytes of keys and values per token, over the layers that keep them for every token; None: unknown.

    Layers with a sliding window, or with a state in place of a cache, are not counted, so this is a lower bound. Latent
    attention (DeepSeek's MLA) and caches that layers share are stored differently by each engine.
    """
    heads, layers = getattr(config, "num_key_value_heads", None), getattr(config, "num_hidden_layers", None)
    kinds = getattr(config, "layer_types", None)
    differs = any(getattr(config, name, None) for name in ("kv_lora_rank", "num_kv_shared_layers"))
    if not heads or not layers or differs or (kinds is None and getattr(config, "sliding_window", None)):
        return None
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    whole = layers if kinds is None else list(kinds).count("full_attention")
    return int(2 * whole * heads * size * BYTES) or None
