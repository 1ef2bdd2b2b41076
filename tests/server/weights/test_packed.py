"""Packed weights compute the same results, and are in memory once."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hone_server.artifacts.sources import ModelEntry
from hone_server.hardware import has_bfloat16
from hone_server.weights.batched_lora import LoraAdapter, PerAdapterPlan, convert_linears
from hone_server.weights.fused_linear import FusedLinear, fuse_linears
from hone_server.weights.loader import LoadedBase, load_adapter
from hone_server.weights.onednn_packing import prepack_weights
from peft import PeftModel
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

TOKENS = torch.arange(1, 13).reshape(2, 6)
ALL = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def model(request: pytest.FixtureRequest, base_folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(base_folder, dtype=request.param).eval().requires_grad_(False)


def tied() -> Any:
    """Return a model whose output head is its embedding; q, k and v have biases."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "tie_word_embeddings": True}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    made = Qwen2ForCausalLM(Qwen2Config(vocab_size=64, **sizes, **heads)).eval().requires_grad_(False)
    for name, parameter in made.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return made


def packed(model: Any) -> Any:
    """Return the last parts of the names of layers whose weight torch can't read."""
    return {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, FusedLinear) and not module.weight.numel()
    }


def logits(model: Any) -> Any:
    return model(input_ids=TOKENS).logits


def test_it_computes_what_it_computed(model: Any) -> None:
    fuse_linears(model)
    before = logits(model)
    prepack_weights([model])
    takes = model.dtype == torch.float32 or has_bfloat16()
    assert packed(model) == (ALL | {"lm_head"} if takes else set())
    torch.testing.assert_close(logits(model), before)


def test_a_head_that_is_the_embedding_stays_and_biases_are_added() -> None:
    model = tied()
    fuse_linears(model)
    before = logits(model)
    prepack_weights([model])
    assert packed(model) == ALL
    torch.testing.assert_close(logits(model), before)


def test_weights_that_two_models_share_stay() -> None:
    base = tied()
    own = base.model.layers[0].mlp.down_proj
    other = copy.deepcopy(base, {id(found): found for found in base.parameters() if found is not own.weight})
    own.weight.mul_(2)
    before = logits(base), logits(other)
    assert not torch.equal(*before)
    prepack_weights([base, other])
    assert packed(base) == packed(other) == {"down_proj"}
    assert base.model.layers[1].mlp.down_proj.weight.numel()
    torch.testing.assert_close((logits(base), logits(other)), before)


def test_reading_a_packed_weight_fails(model: Any) -> None:
    prepack_weights([model])
    weight = model.model.layers[0].mlp.down_proj.weight
    if weight.numel():
        assert not has_bfloat16()
    else:
        with pytest.raises(RuntimeError):
            torch.nn.functional.linear(torch.ones(1, model.config.intermediate_size, dtype=model.dtype), weight)


@pytest.fixture
def base(base_folder: Path) -> Any:
    """Return the base as it is when adapters are loaded at run time."""
    made = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32).eval().requires_grad_(False)
    fuse_linears(made)
    table = convert_linears(made)
    prepack_weights([made])
    return LoadedBase(made, None, table)


def loaded(base: Any, folder: Any) -> Any:
    return load_adapter(base, ModelEntry(folder.name, "adapter", str(folder), folder=folder))


def peft(base_folder: Path, folder: Any) -> Any:
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_folder), folder).eval()


@torch.no_grad()
def test_an_adapter_stays_unmerged_over_packed_weights(
    base: Any, base_folder: Path, adapter_maker: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No readable copy of the weights is made, which would take as much memory again."""
    monkeypatch.delattr("hone_server.weights.loader.unpack_weights")
    folder = adapter_maker(tmp_path / "plain", base_folder, seed=1)
    adapter = loaded(base, folder)
    assert isinstance(adapter, LoraAdapter)
    before = logits(base.model)
    base.lora_batch.plan = PerAdapterPlan([(adapter, 0, TOKENS.shape[1])])
    adapted = base.model(input_ids=TOKENS[:1]).logits
    base.lora_batch.end_step()
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
    base: Any, base_folder: Path, adapter_maker: Callable[..., Path], tmp_path: Path, lora: dict[str, Any]
) -> None:
    folder = adapter_maker(tmp_path / "adapter", base_folder, seed=2, **lora)
    before = logits(base.model)
    merged = loaded(base, folder)
    torch.testing.assert_close(logits(merged), logits(peft(base_folder, folder)), atol=1e-4, rtol=1e-4)
    assert packed(merged) == packed(base.model) == ALL | {"lm_head"}
    assert torch.equal(logits(base.model), before)


def test_a_model_that_answers_already_is_left_as_it_is() -> None:
    base = tied()
    other = copy.deepcopy(base)
    prepack_weights([other], unpacked_model=base)
    assert (packed(base), packed(other)) == (set(), ALL)
    shared = copy.deepcopy(base, {id(found): found for found in base.parameters()})
    prepack_weights([shared], unpacked_model=base)
    assert packed(base) == packed(shared) == set()
