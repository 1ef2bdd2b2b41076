"""The configuration that a model is saved with: the base model's, except for what training decides.

TRL and transformers change a model's configuration for training (no cache, the logits of a mixture's router), and a
server that loads the result would use these settings.
"""

from copy import deepcopy
from typing import Any

from transformers import PreTrainedConfig

TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
# What training decides: the tokens that the model has learned, and the description of the weights.
DECIDED = {*TOKENS, "vocab_size", "dtype", "torch_dtype", "tie_word_embeddings"}


def restore_config(config: PreTrainedConfig, before: PreTrainedConfig) -> None:
    """Set every other field back to its value in `before`, including nested configurations."""
    now, then = vars(config), vars(before)
    for name in [name for name in now.keys() | then.keys() if not name.startswith("_") and name not in DECIDED]:
        value: Any = then.get(name)
        if isinstance(value, PreTrainedConfig) and isinstance(now.get(name), PreTrainedConfig):
            restore_config(now[name], value)
        elif name not in then:
            delattr(config, name)
        elif now.get(name) != value:
            setattr(config, name, deepcopy(value))


def copy_tokens(source: PreTrainedConfig, target: PreTrainedConfig) -> None:
    """Copy the ids of special tokens."""
    pairs = [(source, target), (source.get_text_config(), target.get_text_config())]
    for one, other in pairs:
        for name in TOKENS:
            if hasattr(one, name):
                setattr(other, name, getattr(one, name))
