"""Models that rotate positions differently in long texts give transformers' own answer next to any other request."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hone_server.artifacts.sources import ModelEntry, ModelSources
from hone_server.engine.continuous_batching import ModelHandle
from hone_server.engine.sampler import SamplingParams
from hone_server.model_registry import ModelRegistry
from hone_server.weights.architectures import find_steady_context_tokens, refuse_unsupported_model
from transformers import (
    AutoModelForCausalLM,
    BartConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MarianConfig,
    Phi3Config,
    Phi3ForCausalLM,
    PhimoeConfig,
    PhimoeForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    WhisperConfig,
)

FIRST, LONGEST = 64, 256
SIZES = {
    "vocab_size": 327,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": LONGEST,
    "initializer_range": 0.5,
    "pad_token_id": 0,
}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [4.0, 6.0, 8.0, 10.0],
    "original_max_position_embeddings": FIRST,
}
OTHERS = {"rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": FIRST}
MODELS = {
    "longrope": (Phi3Config, Phi3ForCausalLM, LONG, {"original_max_position_embeddings": FIRST}, FIRST),
    "of-another-class": (LlamaConfig, LlamaForCausalLM, LONG, {}, FIRST),
    "own-rule": (
        PhimoeConfig,
        PhimoeForCausalLM,
        LONG | {"short_mscale": 1.0, "long_mscale": 2.0},
        {"num_local_experts": 2},
        FIRST,
    ),
    "dynamic": (LlamaConfig, LlamaForCausalLM, OTHERS | {"rope_type": "dynamic"}, {}, LONGEST),
    "yarn": (LlamaConfig, LlamaForCausalLM, OTHERS | {"rope_type": "yarn"}, {}, LONGEST),
    "plain": (LlamaConfig, LlamaForCausalLM, {"rope_type": "default", "rope_theta": 10000.0}, {}, LONGEST),
}
ENCODERS = {"bart": BartConfig, "marian": MarianConfig, "whisper": WhisperConfig, "t5": T5Config}


def make(folder: Any, kind: Any, tokenizer: Any) -> Any:
    config, model, rope, more, _ = MODELS[kind]
    torch.manual_seed(1)
    model(config(**SIZES, **more, rope_parameters=dict(rope))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@torch.no_grad()
def plain_answer(model: Any, prompt: Any, new: Any) -> Any:
    """Return the greedy answer, recomputed for each token, up to where positions are rotated the same."""
    tokens = list(prompt)
    for _ in range(new):
        tokens.append(int(model(torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("kind", MODELS)
def test_answers_next_to_the_longest_ones_are_those_of_transformers(
    kind: str, tokenizer_maker: Callable[[], PreTrainedTokenizerFast], tmp_path: Path
) -> None:
    limit = MODELS[kind][-1]
    folder = str(make(tmp_path, kind, tokenizer_maker()))
    prompts = {"short": (list(range(10, 40)), 12), "long": ([50 + i % 200 for i in range(limit - 30)], 30)}
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    expected = {name: plain_answer(reference, *each) for name, each in prompts.items()}

    async def answer(lane: ModelHandle, prompt: Any, new: Any) -> Any:
        greedy = SamplingParams(temperature=0, top_p=1.0, top_k=0, seed=0)
        chunks = [one async for one in lane.generate(prompt, greedy, new, stream=True, ignore_eos=True)]
        return [token for chunk in chunks for token in chunk.token_ids]

    async def run() -> None:
        service = ModelRegistry(ModelSources(folder, None, None, [ModelEntry("m", "base", folder)]), max_model_len=None)
        await service.load_models()
        try:
            lane = service.get_model("m").handle
            assert service.get_max_model_len("m") == lane.max_model_len == limit
            for _ in range(2):
                beside = await asyncio.gather(*(answer(lane, *prompts[name]) for name in ("long", "short", "long")))
                assert beside == [expected["long"], expected["short"], expected["long"]]
            assert await answer(lane, *prompts["short"]) == expected["short"]
        finally:
            service.stop()

    asyncio.run(run())


@pytest.mark.parametrize("kind", MODELS)
def test_the_context_ends_where_positions_would_be_rotated_differently(kind: str) -> None:
    config, model, rope, more, limit = MODELS[kind]
    with torch.device("meta"):
        outline = model(config(**SIZES, **more, rope_parameters=dict(rope)))
    assert (find_steady_context_tokens(outline) or LONGEST) == limit


@pytest.mark.parametrize("kind", ENCODERS)
def test_encoder_decoders_are_refused_as_such(kind: str) -> None:
    with pytest.raises(Exception, match=f"of the type {kind}, an encoder-decoder") as refused:
        refuse_unsupported_model(ENCODERS[kind](), "m")
    assert refused.value.reason.name == "ModelUnsupported"
