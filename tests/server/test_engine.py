"""The engine itself: more requests than its cache holds at once."""

import asyncio

import pytest
import torch
from hone_server.engine.continuous_batching import Engine, EngineError, Lane
from hone_server.engine.sampler import Sampling
from hone_server.hardware import PAGE_TOKENS, KvPlan
from transformers import AutoModelForCausalLM

LENGTH = 2 * PAGE_TOKENS


@pytest.fixture
def engine(base_folder):
    """Return an engine whose cache holds one request of the greatest length and little more."""
    model = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32).eval()
    engine = Engine(model, KvPlan(max_model_len=LENGTH, num_blocks=LENGTH // PAGE_TOKENS + 1))
    engine.start()
    yield engine
    engine.stop()


@pytest.fixture
def lane(engine):
    return Lane(engine, frozenset({2}))


async def answer(lane, seed):
    prompt = [10 + seed, 20, 30, 40]
    sampling = Sampling(temperature=1.0, top_p=1.0, top_k=0, seed=seed)
    tokens = []
    async for chunk in lane.generate(prompt, sampling, LENGTH - len(prompt), stream=True, ignore_eos=True):
        tokens += chunk.ids
    return tokens


def test_evicted_requests_get_the_same_answers(engine, lane):
    async def run():
        alone = [await answer(lane, seed) for seed in range(3)]
        together = await asyncio.gather(*[answer(lane, seed) for seed in range(3)])
        return alone, together

    alone, together = asyncio.run(run())
    assert all(len(tokens) == LENGTH - 4 for tokens in alone)
    assert together == alone
    assert engine.running
    assert lane.counts() == (0, 0)


def test_a_stopped_engine_reports_it(engine, lane):
    engine.stop()
    assert not engine.running
    with pytest.raises(EngineError):
        asyncio.run(answer(lane, 1))
