"""Unmerged adapters: each row of a mixed batch gets what PEFT computes, and the base's rows are unchanged."""

import asyncio

import pytest
import torch
from hone_server.artifacts.sources import Served
from hone_server.engine.continuous_batching import Engine, Lane
from hone_server.engine.sampler import Sampling
from hone_server.hardware import KvPlan
from hone_server.weights.batched_lora import Adapter, BatchTable, Segments, Stack, Stacked, make_adaptable
from hone_server.weights.loader import Base, load_adapter
from peft import PeftModel
from transformers import AutoModelForCausalLM

GREEDY = Sampling(temperature=0, top_p=1.0, top_k=0, seed=0, logprobs=0)
KINDS = {
    "linear": {},
    "rslora": {"use_rslora": True, "r": 8},
    "patterns": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"mlp.*": 32}},
    "few-layers": {"target_modules": ["v_proj", "down_proj"], "layers_to_transform": [1]},
}
PROMPTS = [[5, 40, 41, 42, 43], list(range(50, 120)), [9] * 33, [7]]


@pytest.fixture(scope="module")
def base(base_folder):
    model = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32).eval().requires_grad_(False)
    return Base(model, None, make_adaptable(model))


@pytest.fixture(scope="module")
def folders(base_folder, adapter_maker, tmp_path_factory):
    root = tmp_path_factory.mktemp("adapters")
    return {
        name: adapter_maker(root / name, base_folder, seed=seed, **lora)
        for seed, (name, lora) in enumerate(KINDS.items())
    }


@pytest.fixture(scope="module")
def adapters(base, folders):
    return {name: load(base, folder) for name, folder in folders.items()}


def load(base, folder):
    return load_adapter(base, Served(folder.name, "adapter", str(folder), folder=folder))


@torch.no_grad()
def expected(model, prompt, new):
    """Return the greedy answer, and the log probability of each of its tokens."""
    tokens, logprobs = list(prompt), []
    for _ in range(new):
        row = torch.log_softmax(model(torch.tensor([tokens])).logits[0, -1], dim=-1)
        tokens.append(int(row.argmax()))
        logprobs.append(float(row.max()))
    return tokens[len(prompt) :], logprobs


async def answer(lane, prompt, new):
    tokens, logprobs = [], []
    async for chunk in lane.generate(prompt, GREEDY, new, stream=True, ignore_eos=True):
        tokens += chunk.ids
        logprobs += [one.logprob for one in chunk.logprobs]
    return tokens, logprobs


@pytest.fixture(scope="module")
def references(base_folder, folders):
    models = {name: PeftModel.from_pretrained(fresh(base_folder), folder).eval() for name, folder in folders.items()}
    return models | {"base": fresh(base_folder).eval()}


def fresh(base_folder):
    return AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32)


def test_a_mixed_batch_answers_as_peft_does(base, adapters, references):
    engine = Engine(base.model, KvPlan(max_model_len=512, num_blocks=512), base.table)
    lanes = {name: Lane(engine, frozenset(), adapter) for name, adapter in adapters.items()}
    lanes["base"] = Lane(engine, frozenset())
    # Twice, so that the second time finds the prompts of others in the cache, too; answers end at different times.
    asked = [(name, prompt, 6 + 5 * place) for _ in range(2) for place, prompt in enumerate(PROMPTS) for name in lanes]

    async def run():
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
    assert base.table.plan is None


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
def test_adapters_beyond_lora_on_linear_layers_are_merged(base, base_folder, adapter_maker, tmp_path, lora):
    folder = adapter_maker(tmp_path / "adapter", base_folder, seed=3, **lora)
    merged = load(base, folder)
    reference = PeftModel.from_pretrained(fresh(base_folder), folder).eval()
    prompt = torch.tensor([PROMPTS[0]])
    with torch.no_grad():
        assert torch.allclose(merged(prompt).logits, reference(prompt).logits, atol=1e-4)
        # It ignores the base's batches, too.
        base.table.plan = Segments([(Adapter({}), 0, 1)])
        assert torch.allclose(merged(prompt).logits, reference(prompt).logits, atol=1e-4)
    base.table.clear()


def factors(seed, rank, layers="ab"):
    generator = torch.Generator().manual_seed(seed)
    return Adapter(
        {one: (torch.randn(rank, 6, generator=generator), torch.randn(rank, 5, generator=generator)) for one in layers}
    )


@pytest.mark.parametrize("sizes", [[0, 2, 2, 2], [3, 1, 2, 1], [0, 1, 0, 3], [1, 0, 7, 0]])
def test_all_plans_compute_the_same(sizes):
    adapters = [None, factors(1, 2), factors(2, 4, "a"), factors(3, 3)]
    requests = [(adapter, rows) for adapter, rows in zip(adapters, sizes, strict=True) if rows]
    x = torch.randn(sum(sizes), 6, generator=torch.Generator().manual_seed(9))
    runs, start, wanted = [], 0, {"a": torch.zeros(len(x), 5), "b": torch.zeros(len(x), 5)}
    for adapter, rows in requests:
        if adapter:
            runs.append((adapter, start, start + rows))
            for layer, (down, up) in adapter.factors.items():
                wanted[layer][start : start + rows] = x[start : start + rows] @ down.t() @ up
        start += rows
    table = BatchTable()
    table.prepare(requests)
    for plan in (Segments(runs), Stacked(Stack(adapters[1:]), runs), table.plan):
        for layer in "abc":
            out = torch.zeros(len(x), 5)
            plan.add(layer, x, out)
            assert torch.allclose(out, wanted.get(layer, torch.zeros(len(x), 5)), atol=1e-5)


def test_a_stack_is_kept_while_it_fits_and_forgotten_with_its_adapter():
    one, two, three = factors(1, 2), factors(2, 2), factors(3, 2)
    table = BatchTable()
    table.prepare([(one, 1), (two, 1), (three, 1)])
    kept = table.stack
    table.prepare([(one, 1), (three, 1)])
    assert table.stack is kept
    table.forget(factors(4, 2))
    assert table.stack is kept
    table.forget(two)
    assert table.stack is None
    table.prepare([(None, 9)])
    assert table.plan is None
