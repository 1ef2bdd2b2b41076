"""Layers that read the same input become one product, and nothing else changes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hone_server.weights.fused_linear import FusedLinear, fuse_linears
from hone_server.weights.loader import _copy_sharing_tensors, copy_mapped_tensors, list_storages
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

TOKENS = torch.arange(1, 13).reshape(2, 6)


@pytest.fixture(params=["llama", "qwen2"])
def model(request: pytest.FixtureRequest, base_folder: Path) -> Any:
    """Return a model without biases, and one with biases on q, k and v."""
    if request.param == "llama":
        return AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32).eval()
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    made = Qwen2ForCausalLM(Qwen2Config(vocab_size=64, **sizes, **heads)).eval()
    for name, parameter in made.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return made


def names(model: Any) -> Any:
    return {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, FusedLinear)}


def test_it_computes_what_it_computed(model: Any) -> None:
    before = model(input_ids=TOKENS).logits
    weights = {name: parameter.clone() for name, parameter in model.named_parameters()}
    fuse_linears(model)
    assert names(model) == {"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"}
    torch.testing.assert_close(model(input_ids=TOKENS).logits, before)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, weights[name])


def test_there_is_one_product_for_each_joint_and_nothing_is_kept(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fuse_linears(model)
    products = []
    plain = torch.nn.functional.linear
    monkeypatch.setattr(
        "hone_server.weights.fused_linear.linear", lambda *given: products.append(given[1].shape) or plain(*given)
    )
    model(input_ids=TOKENS)
    assert len(products) == 2 * len(model.model.layers)
    for module in model.modules():
        if isinstance(module, FusedLinear):
            assert module.fused._input is None
            assert module.fused._outputs == []


def test_nothing_is_mapped_from_the_file_afterwards(base_folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base_folder, dtype="auto")
    before = {parameter.data_ptr() for parameter in model.parameters()}
    copy_mapped_tensors(model, list_storages(model))
    assert before.isdisjoint(parameter.data_ptr() for parameter in model.parameters())


def test_a_copy_whose_weights_change_is_apart(model: Any) -> None:
    fuse_linears(model)
    before = model(input_ids=TOKENS).logits
    other = _copy_sharing_tensors(model, set())
    other.model.layers[0].self_attn.q_proj.weight.data = torch.zeros(
        model.model.layers[0].self_attn.q_proj.weight.shape
    )
    assert not torch.allclose(other(input_ids=TOKENS).logits, before)
    torch.testing.assert_close(model(input_ids=TOKENS).logits, before)
