"""A request whose values are no numbers ends with an error, and the others in its batch keep their answers."""

import asyncio
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from hone_server.engine.continuous_batching import Engine, EngineError, ModelHandle
from hone_server.engine.finite_values import FiniteValueFilter
from hone_server.engine.penalties import Penalties
from hone_server.engine.sampler import SamplingParams
from hone_server.hardware import KVCacheConfig
from safetensors.torch import load_file, save_file
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

POISON = 300
SIZES = {
    "vocab_size": 327,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 2048,
    "initializer_range": 0.2,
    "tie_word_embeddings": False,
}
MODELS = {
    "ragged": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "window": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=32)),
    "softcap": lambda: Gemma2ForCausalLM(Gemma2Config(**SIZES, sliding_window=32)),
}
GOOD = [list(range(10, 80)), [5, 6, 7], list(range(100, 290)), [9]]
LONG = [number % 250 + 10 for number in range(700)]  # longer than a step
BAD = {
    "alone": [POISON],
    "first": [POISON, 5, 6, 7],
    "last": [5, 6, 7, POISON],
    "middle": [*LONG[:300], POISON, *LONG[:250]],
    "first step": [*LONG[:20], POISON, *LONG],
    "second step": [*LONG[:600], POISON, *LONG[:50]],
}


def greedy(**settings: Any) -> Any:
    never = Penalties(bias=((POISON, -1e6),))  # so that no answer takes it up
    return SamplingParams(temperature=0, top_p=1.0, top_k=0, seed=0, penalties=never, **settings)


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    return MODELS[request.param]().eval().float()


@pytest.fixture
def lane(model: Any) -> Iterator[Any]:
    engine = Engine(model, KVCacheConfig(max_model_len=1024, page_count=256))
    engine.start()
    yield ModelHandle(engine, frozenset())
    engine.stop()


async def answer(lane: Any, prompt: Any, *, stream: bool = True, **settings: Any) -> Any:
    chunks = [one async for one in lane.generate(prompt, greedy(**settings), 12, stream=stream)]
    return [token for chunk in chunks for token in chunk.token_ids]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_end_their_request_and_no_other(model: Any, lane: Any, value: Any) -> None:
    embedding = model.get_input_embeddings().weight.data
    embedding[POISON] = value

    async def run() -> None:
        before = [await answer(lane, prompt) for prompt in GOOD]
        for turn in range(2):
            bad = [answer(lane, prompt, stream=bool(turn % 2), top_logprobs=turn or None) for prompt in BAD.values()]
            good = [answer(lane, prompt) for prompt in GOOD]
            found = await asyncio.gather(*good, *bad, return_exceptions=True)
            assert found[: len(GOOD)] == before
            for error in found[len(GOOD) :]:
                assert isinstance(error, EngineError)
                assert "not finite" in str(error)
            # One that begins as a bad one does is right as far as it goes on otherwise, and fails where it does not.
            assert len(await answer(lane, [*LONG[:300], 5])) == 12
            with pytest.raises(EngineError, match="not finite"):
                await answer(lane, [*BAD["middle"], 5, 6])
        assert [await answer(lane, prompt) for prompt in GOOD] == before

    asyncio.run(run())
    assert lane.engine.is_running
    assert lane.count_requests() == (0, 0)
    assert not lane.engine._finite_filter.failed_ids
    cache = lane.engine._manager.batch_processor.cache
    assert all(not allocator.block_table for allocator in cache.cache_allocators.values())


def test_a_value_that_appears_late_in_an_answer_ends_it(model: Any, lane: Any) -> None:
    embedding = model.get_input_embeddings().weight.data
    model.get_input_embeddings().weight.data = embedding.nan_to_num(0, 0, 0)
    tokens = asyncio.run(answer(lane, GOOD[0]))
    model.get_input_embeddings().weight.data[tokens[5]] = torch.nan
    with pytest.raises(EngineError, match="not finite"):
        asyncio.run(answer(lane, GOOD[0]))
    model.get_input_embeddings().weight.data = embedding


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1e30, -1e30])
@pytest.mark.parametrize("side", [0, 1])
def test_keys_and_values_that_could_reach_others_are_zero(value: Any, side: int) -> None:
    torch.manual_seed(0)
    both = [torch.randn(1, 2, 5, 4) for _ in range(2)]
    wanted = [one.clone() for one in both]
    both[side][0, 1, 3, 2] = value
    for one in wanted:
        one[:, :, 3] = 0
    found = FiniteValueFilter()._mask_non_finite(*both)
    assert all(torch.equal(*pair) for pair in zip(found, wanted, strict=True))


def test_scores_of_minus_infinity_are_allowed() -> None:
    guard = FiniteValueFilter()
    guard.check_scores(torch.tensor([[0.0, -torch.inf], [-1e30, 5.0]]))
    assert not guard.failed_ids


def test_a_damaged_adapter_is_refused_by_its_name(
    base_folder: Path,
    adapter_maker: Callable[..., Path],
    serve: Callable[..., AbstractContextManager[Any]],
    run_to_end: Callable[..., tuple[int, str]],
    tmp_path: Path,
) -> None:
    good = adapter_maker(tmp_path / "good", base_folder, seed=3)
    shutil.copytree(good, tmp_path / "bad")
    file = tmp_path / "bad/adapter_model.safetensors"
    weights = load_file(file)
    next(tensor for name, tensor in weights.items() if "v_proj" in name)[0, 0] = torch.nan
    save_file(weights, file, metadata={"format": "pt"})
    adapters = [f"--adapter=good={good}", f"--adapter=bad={tmp_path / 'bad'}"]
    code, said = run_to_end(str(base_folder), "--name", "base", *adapters)
    assert code
    assert "EngineFailed: adapter 'bad' in" in said
    token = tmp_path / "token"
    token.write_text("secret")
    with serve(str(base_folder), "--name", "base", f"--admin-token-file={token}") as server:
        for path, status in ((tmp_path / "bad", 500), (good, 200)):
            response = httpx.post(
                f"{server.url}/v1/load_lora_adapter",
                json={"lora_name": "a", "lora_path": str(path)},
                headers={"X-Hone-Admin": "secret"},
                timeout=60,
            )
            assert response.status_code == status, response.text
            assert ("not finite" in response.text) == (status == 500)
