"""What a served model needs beside its weights: tokens to text, where answers end, and its default settings."""

from functools import partial
from typing import Any

from .engine import Lane
from .generation import Model
from .penalties import Penalties
from .prompts import longest_token
from .sampling import Sampling
from .sources import Served
from .text import Decode


def make_model(served: Served, tokenizer: Any, lane: Lane, defaults: Sampling) -> Model:
    decode, token_text = _decoder(tokenizer), _token_text(tokenizer)
    return Model(served, tokenizer, decode, token_text, lane, defaults, longest_token(tokenizer))


def eos_token_ids(generation_config: Any, tokenizer: Any) -> frozenset[int]:
    ids = generation_config.eos_token_id
    listed = ids if isinstance(ids, list) else [ids]
    return frozenset(one for one in [*listed, tokenizer.eos_token_id] if one is not None)


def _decoder(tokenizer: Any) -> Decode:
    """The tokenizer's own decoding, without transformers' layer around it where that can be: it runs at every token."""
    return partial(getattr(tokenizer, "backend_tokenizer", tokenizer).decode, skip_special_tokens=True)


def _token_text(tokenizer: Any) -> Decode:
    """Decodes tokens as they stand within a text: after a letter, because some decoders drop the space of the first."""
    decode = partial(getattr(tokenizer, "backend_tokenizer", tokenizer).decode, skip_special_tokens=False)
    letter = tokenizer("a", add_special_tokens=False)["input_ids"]
    start = len(decode(letter))
    return lambda tokens: decode([*letter, *tokens])[start:]


def defaults_of(config: Any) -> Sampling:
    """The model's own sampling settings, or OpenAI's where it has none."""
    return Sampling(
        temperature=1.0 if config.temperature is None else config.temperature,
        top_p=1.0 if config.top_p is None else config.top_p,
        top_k=config.top_k or 0,
        seed=0,
        penalties=Penalties(repetition=config.repetition_penalty or 1.0),
    )
