"""Packed weights compute the same results, and are in memory once."""

import copy

import pytest
import torch
from hone_server.artifacts.sources import Served
from hone_server.hardware import has_bfloat16
from hone_server.weights.batched_lora import Adapter, Segments, make_adaptable
from hone_server.weights.fused_linear import JoinedLinear, join
from hone_server.weights.loader import Base, load_adapter
from hone_server.weights.onednn_packing import pack
from peft import PeftModel
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

TOKENS = torch.arange(1, 13).reshape(2, 6)
ALL = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def model(request, base_folder):
    return AutoModelForCausalLM.from_pretrained(base_folder, dtype=request.param).eval().requires_grad_(False)


def tied():
    """Return a model whose output head is its embedding; q, k and v have biases."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "tie_word_embeddings": True}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    made = Qwen2ForCausalLM(Qwen2Config(vocab_size=64, **sizes, **heads)).eval().requires_grad_(False)
    for name, parameter in made.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return made


def packed(model):
    """Return the last parts of the names of layers whose weight torch can't read."""
    return {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, JoinedLinear) and not module.weight.numel()
    }


def logits(model):
    return model(input_ids=TOKENS).logits


def test_it_computes_what_it_computed(model):
    join(model)
    before = logits(model)
    pack([model])
    takes = model.dtype == torch.float32 or has_bfloat16()
    assert packed(model) == (ALL | {"lm_head"} if takes else set())
    torch.testing.assert_close(logits(model), before)


def test_a_head_that_is_the_embedding_stays_and_biases_are_added():
    model = tied()
    join(model)
    before = logits(model)
    pack([model])
    assert packed(model) == ALL
    torch.testing.assert_close(logits(model), before)


def test_weights_that_two_models_share_stay():
    base = tied()
    own = base.model.layers[0].mlp.down_proj
    other = copy.deepcopy(base, {id(found): found for found in base.parameters() if found is not own.weight})
    own.weight.mul_(2)
    before = logits(base), logits(other)
    assert not torch.equal(*before)
    pack([base, other])
    assert packed(base) == packed(other) == {"down_proj"}
    assert base.model.layers[1].mlp.down_proj.weight.numel()
    torch.testing.assert_close((logits(base), logits(other)), before)


def test_reading_a_packed_weight_fails(model):
    pack([model])
    weight = model.model.layers[0].mlp.down_proj.weight
    if weight.numel():
        assert not has_bfloat16()
    else:
        with pytest.raises(RuntimeError):
            torch.nn.functional.linear(torch.ones(1, model.config.intermediate_size, dtype=model.dtype), weight)


@pytest.fixture
def base(base_folder):
    """Return the base as it is when adapters are loaded at run time."""
    made = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32).eval().requires_grad_(False)
    join(made)
    table = make_adaptable(made)
    pack([made])
    return Base(made, None, table)


def loaded(base, folder):
    return load_adapter(base, Served(folder.name, "adapter", str(folder), folder=folder))


def peft(base_folder, folder):
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_folder), folder).eval()


@torch.no_grad()
def test_an_adapter_stays_unmerged_over_packed_weights(base, base_folder, adapter_maker, tmp_path, monkeypatch):
    """No readable copy of the weights is made, which would take as much memory again."""
    monkeypatch.delattr("hone_server.weights.loader.unpack")
    folder = adapter_maker(tmp_path / "plain", base_folder, seed=1)
    adapter = loaded(base, folder)
    assert isinstance(adapter, Adapter)
    before = logits(base.model)
    base.table.plan = Segments([(adapter, 0, TOKENS.shape[1])])
    adapted = base.model(input_ids=TOKENS[:1]).logits
    base.table.clear()
    torch.testing.assert_close(adapted, peft(base_folder, folder)(input_ids=TOKENS[:1]).logits, atol=1e-4, rtol=1e-4)
    assert torch.equal(logits(base.model), before)


@pytest.mark.parametrize(
    "lora",
    [
        {"use_dora": True},
        {"use_dora": True, "target_modules": ["q_proj"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["lm_head", "o_proj"]},
        {"modules_to_save": ["lm_head"], "target_modules": ["q_proj"]},
    ],
    ids=["dora", "dora on one", "embedding", "output", "saved module"],
)
def test_an_adapter_is_merged_into_readable_weights_which_are_packed_again(
    base, base_folder, adapter_maker, tmp_path, lora
):
    folder = adapter_maker(tmp_path / "adapter", base_folder, seed=2, **lora)
    before = logits(base.model)
    merged = loaded(base, folder)
    torch.testing.assert_close(logits(merged), logits(peft(base_folder, folder)), atol=1e-4, rtol=1e-4)
    assert packed(merged) == packed(base.model) == ALL | {"lm_head"}
    assert torch.equal(logits(base.model), before)


def test_a_model_that_answers_already_is_left_as_it_is():
    base = tied()
    other = copy.deepcopy(base)
    pack([other], beside=base)
    assert (packed(base), packed(other)) == (set(), ALL)
    shared = copy.deepcopy(base, {id(found): found for found in base.parameters()})
    pack([shared], beside=base)
    assert packed(base) == packed(shared) == set()
