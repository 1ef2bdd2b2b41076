"""Unmerged adapters: each row of a mixed batch gets what PEFT computes, and the base's rows are unchanged."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hone_server.artifacts.sources import ModelEntry
from hone_server.engine.continuous_batching import Engine, ModelHandle
from hone_server.engine.sampler import SamplingParams
from hone_server.hardware import KVCacheConfig
from hone_server.weights.batched_lora import (
    BatchedLoraPlan,
    LoraAdapter,
    LoraBatch,
    PerAdapterPlan,
    StackedLora,
    convert_linears,
)
from hone_server.weights.loader import LoadedBase, load_adapter
from peft import PeftModel
from transformers import AutoModelForCausalLM

GREEDY = SamplingParams(temperature=0, top_p=1.0, top_k=0, seed=0, top_logprobs=0)
KINDS = {
    "linear": {},
    "rslora": {"use_rslora": True, "r": 8},
    "patterns": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"mlp.*": 32}},
    "few-layers": {"target_modules": ["v_proj", "down_proj"], "layers_to_transform": [1]},
}
PROMPTS = [[5, 40, 41, 42, 43], list(range(50, 120)), [9] * 33, [7]]


@pytest.fixture(scope="module")
def base(base_folder: Path) -> Any:
    model = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32).eval().requires_grad_(False)
    return LoadedBase(model, None, convert_linears(model))


@pytest.fixture(scope="module")
def folders(base_folder: Path, adapter_maker: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("adapters")
    return {
        name: adapter_maker(root / name, base_folder, seed=seed, **lora)
        for seed, (name, lora) in enumerate(KINDS.items())
    }


@pytest.fixture(scope="module")
def adapters(base: Any, folders: Any) -> Any:
    return {name: load(base, folder) for name, folder in folders.items()}


def load(base: Any, folder: Any) -> Any:
    return load_adapter(base, ModelEntry(folder.name, "adapter", str(folder), folder=folder))


@torch.no_grad()
def expected(model: Any, prompt: Any, new: Any) -> Any:
    """Return the greedy answer, and the log probability of each of its tokens."""
    tokens, logprobs = list(prompt), []
    for _ in range(new):
        row = torch.log_softmax(model(torch.tensor([tokens])).logits[0, -1], dim=-1)
        tokens.append(int(row.argmax()))
        logprobs.append(float(row.max()))
    return tokens[len(prompt) :], logprobs


async def answer(lane: Any, prompt: Any, new: Any) -> Any:
    tokens, logprobs = [], []
    async for chunk in lane.generate(prompt, GREEDY, new, stream=True, ignore_eos=True):
        tokens += chunk.token_ids
        logprobs += [one.logprob for one in chunk.logprobs]
    return tokens, logprobs


@pytest.fixture(scope="module")
def references(base_folder: Path, folders: Any) -> Any:
    models = {name: PeftModel.from_pretrained(fresh(base_folder), folder).eval() for name, folder in folders.items()}
    return models | {"base": fresh(base_folder).eval()}


def fresh(base_folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32)


def test_a_mixed_batch_answers_as_peft_does(base: Any, adapters: Any, references: Any) -> None:
    engine = Engine(base.model, KVCacheConfig(max_model_len=512, page_count=512), base.lora_batch)
    lanes = {name: ModelHandle(engine, frozenset(), adapter) for name, adapter in adapters.items()}
    lanes["base"] = ModelHandle(engine, frozenset())
    # Twice, so that the second time finds the prompts of others in the cache, too; answers end at different times.
    asked = [(name, prompt, 6 + 5 * place) for _ in range(2) for place, prompt in enumerate(PROMPTS) for name in lanes]

    async def run() -> Any:
        return await asyncio.gather(*[answer(lanes[name], prompt, new) for name, prompt, new in asked])

    engine.start()
    try:
        answers = [*asyncio.run(run()), *asyncio.run(run())]
    finally:
        engine.stop()
    for (name, prompt, new), (tokens, logprobs) in zip(asked * 2, answers, strict=True):
        wanted, scores = expected(references[name], prompt, new)
        assert tokens == wanted, name
        assert logprobs == pytest.approx(scores, abs=1e-3), name
    assert base.lora_batch.plan is None


@pytest.mark.parametrize(
    "lora",
    [
        {"use_dora": True},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["q_proj", "lm_head"]},
        {"modules_to_save": ["lm_head"], "target_modules": ["q_proj"]},
    ],
    ids=["dora", "embedding", "output", "saved-module"],
)
def test_adapters_beyond_lora_on_linear_layers_are_merged(
    base: Any, base_folder: Path, adapter_maker: Callable[..., Path], tmp_path: Path, lora: dict[str, Any]
) -> None:
    folder = adapter_maker(tmp_path / "adapter", base_folder, seed=3, **lora)
    merged = load(base, folder)
    reference = PeftModel.from_pretrained(fresh(base_folder), folder).eval()
    prompt = torch.tensor([PROMPTS[0]])
    with torch.no_grad():
        assert torch.allclose(merged(prompt).logits, reference(prompt).logits, atol=1e-4)
        # It ignores the base's batches, too.
        base.lora_batch.plan = PerAdapterPlan([(LoraAdapter({}), 0, 1)])
        assert torch.allclose(merged(prompt).logits, reference(prompt).logits, atol=1e-4)
    base.lora_batch.end_step()


def factors(seed: Any, rank: Any, layers: str = "ab") -> Any:
    generator = torch.Generator().manual_seed(seed)
    return LoraAdapter(
        {one: (torch.randn(rank, 6, generator=generator), torch.randn(rank, 5, generator=generator)) for one in layers}
    )


@pytest.mark.parametrize("sizes", [[0, 2, 2, 2], [3, 1, 2, 1], [0, 1, 0, 3], [1, 0, 7, 0]])
def test_all_plans_compute_the_same(sizes: list[int]) -> None:
    adapters = [None, factors(1, 2), factors(2, 4, "a"), factors(3, 3)]
    requests = [(adapter, rows) for adapter, rows in zip(adapters, sizes, strict=True) if rows]
    x = torch.randn(sum(sizes), 6, generator=torch.Generator().manual_seed(9))
    runs, start, wanted = [], 0, {"a": torch.zeros(len(x), 5), "b": torch.zeros(len(x), 5)}
    for adapter, rows in requests:
        if adapter:
            runs.append((adapter, start, start + rows))
            for layer, (down, up) in adapter.weights.items():
                wanted[layer][start : start + rows] = x[start : start + rows] @ down.t() @ up
        start += rows
    table = LoraBatch()
    table.begin_step(requests)
    for plan in (PerAdapterPlan(runs), BatchedLoraPlan(StackedLora(adapters[1:]), runs), table.plan):
        for layer in "abc":
            out = torch.zeros(len(x), 5)
            plan.add_outputs(layer, x, out)
            assert torch.allclose(out, wanted.get(layer, torch.zeros(len(x), 5)), atol=1e-5)


def test_a_stack_is_kept_while_it_fits_and_forgotten_with_its_adapter() -> None:
    one, two, three = factors(1, 2), factors(2, 2), factors(3, 2)
    table = LoraBatch()
    table.begin_step([(one, 1), (two, 1), (three, 1)])
    kept = table.stacked
    table.begin_step([(one, 1), (three, 1)])
    assert table.stacked is kept
    table.free_adapter(factors(4, 2))
    assert table.stacked is kept
    table.free_adapter(two)
    assert table.stacked is None
    table.begin_step([(None, 9)])
    assert table.plan is None
