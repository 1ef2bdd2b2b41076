"""The engine itself: more requests than its cache holds at once."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hone_server.engine.continuous_batching import Engine, EngineError, ModelHandle
from hone_server.engine.sampler import SamplingParams
from hone_server.hardware import PAGE_TOKENS, KVCacheConfig
from transformers import AutoModelForCausalLM

LENGTH = 2 * PAGE_TOKENS


@pytest.fixture
def engine(base_folder: Path) -> Iterator[Any]:
    """Return an engine whose cache holds one request of the greatest length and little more."""
    model = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32).eval()
    engine = Engine(model, KVCacheConfig(max_model_len=LENGTH, page_count=LENGTH // PAGE_TOKENS + 1))
    engine.start()
    yield engine
    engine.stop()


@pytest.fixture
def lane(engine: Any) -> Any:
    return ModelHandle(engine, frozenset({2}))


async def answer(lane: Any, seed: Any) -> Any:
    prompt = [10 + seed, 20, 30, 40]
    sampling = SamplingParams(temperature=1.0, top_p=1.0, top_k=0, seed=seed)
    tokens = []
    async for chunk in lane.generate(prompt, sampling, LENGTH - len(prompt), stream=True, ignore_eos=True):
        tokens += chunk.token_ids
    return tokens


def test_evicted_requests_get_the_same_answers(engine: Any, lane: Any) -> None:
    async def run() -> Any:
        alone = [await answer(lane, seed) for seed in range(3)]
        together = await asyncio.gather(*[answer(lane, seed) for seed in range(3)])
        return alone, together

    alone, together = asyncio.run(run())
    assert all(len(tokens) == LENGTH - 4 for tokens in alone)
    assert together == alone
    assert engine.is_running
    assert lane.count_requests() == (0, 0)


def test_a_stopped_engine_reports_it(engine: Any, lane: Any) -> None:
    engine.stop()
    assert not engine.is_running
    with pytest.raises(EngineError):
        asyncio.run(answer(lane, 1))
