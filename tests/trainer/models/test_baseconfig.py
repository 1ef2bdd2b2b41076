"""The size of one token's KV cache by the configuration, compared with the cache that transformers fills."""

from typing import Any

import pytest
import torch
from hone_trainer.models.base_config import count_cache_bytes_per_token
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    Qwen3Config,
)
from transformers.cache_utils import DynamicSlidingWindowLayer

SMALL = {
    "vocab_size": 32,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**SMALL),
        LlamaConfig(**SMALL, num_key_value_heads=2),
        Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=32),
        Gemma2Config(**SMALL, num_key_value_heads=2, head_dim=8),
    ],
    ids=["all heads", "grouped", "own head size", "half of the layers slide"],
)
def test_the_bytes_equal_the_cache_that_transformers_fills(config: Any) -> None:
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    with torch.no_grad():
        cache = model(torch.tensor([[1, 2, 3]]), use_cache=True).past_key_values
    whole = [layer for layer in cache.layers if not isinstance(layer, DynamicSlidingWindowLayer)]
    kept = sum(tensor.nbytes for layer in whole for tensor in (layer.keys, layer.values))
    assert count_cache_bytes_per_token(config) == kept / 3


@pytest.mark.parametrize(
    "config",
    [MistralConfig(sliding_window=4096), DeepseekV3Config(), MambaConfig(), GPT2Config()],
    ids=["every layer slides", "latent attention", "no attention", "heads by another name"],
)
def test_the_bytes_are_unknown_when_the_configuration_leaves_them_open(config: Any) -> None:
    assert count_cache_bytes_per_token(config) is None
