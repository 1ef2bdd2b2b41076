"""Packed weights compute what the same weights computed, and are there once."""

import copy

import pytest
import torch
from hone_server.joined import JoinedLinear, join
from hone_server.memory import has_bfloat16
from hone_server.packed import PackedLinear, pack
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

TOKENS = torch.arange(1, 13).reshape(2, 6)
ALL = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def model(request, base_folder):
    return AutoModelForCausalLM.from_pretrained(base_folder, dtype=request.param).eval().requires_grad_(False)


def tied():
    """Its output head is its embedding; q, k and v have biases."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "tie_word_embeddings": True}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    made = Qwen2ForCausalLM(Qwen2Config(vocab_size=64, **sizes, **heads)).eval().requires_grad_(False)
    for name, parameter in made.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return made


def packed(model):
    """The last parts of the names of layers whose weight torch can't read any more."""
    return {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, JoinedLinear | PackedLinear) and not module.weight.numel()
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


def test_what_reads_a_packed_weight_fails(model):
    pack([model])
    weight = model.model.layers[0].mlp.down_proj.weight
    if weight.numel():
        assert not has_bfloat16()
    else:
        with pytest.raises(RuntimeError):
            torch.nn.functional.linear(torch.ones(1, model.config.intermediate_size, dtype=model.dtype), weight)
