"""Adapters merged at load, with a base that stays unchanged; merged and full artifacts."""

import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from hone_api.artifacts.manifest import BaseModelReference
from hone_api.reasons import HoneError
from hone_server.artifacts.sources import ModelEntry
from hone_server.weights.fused_linear import fuse_linears
from hone_server.weights.loader import LoadedBase, load_adapter
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

PROMPT = torch.tensor([[5, 40, 41, 42, 43]])


@pytest.fixture
def base(base_folder: Path) -> Any:
    """Return the base as load_base returns it."""
    made = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32).eval()
    fuse_linears(made)
    return made


def merge_adapter(base: Any, name: Any, folder: Any) -> Any:
    return load_adapter(LoadedBase(base, None, None), ModelEntry(name, "adapter", str(folder), folder=folder))


@torch.no_grad()
def logits(model: Any) -> Any:
    return model(PROMPT).logits


def tensors(model: Any) -> Any:
    return {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(
    "lora",
    [
        {},
        {"use_rslora": True},
        {"use_dora": True},
        {"bias": "all", "target_modules": ["q_proj"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"modules_to_save": ["lm_head"], "target_modules": ["q_proj"]},
    ],
    ids=["linear", "rslora", "dora", "bias", "embedding", "saved-module"],
)
def test_a_merged_adapter_is_what_peft_computes_and_the_base_stays(
    base: Any, base_folder: Path, adapter_maker: Callable[..., Path], tmp_path: Path, lora: dict[str, Any]
) -> None:
    folder = adapter_maker(tmp_path / "adapter", base_folder, seed=3, **lora)
    before = logits(base)
    adapted = merge_adapter(base, "adapter", folder)
    reference = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_folder), folder).eval()
    assert torch.allclose(logits(adapted), logits(reference), atol=1e-4)
    assert not torch.allclose(logits(adapted), before, atol=1e-2)
    assert torch.equal(logits(base), before)


def test_what_the_adapter_does_not_change_is_shared(
    base: Any, base_folder: Path, adapter_maker: Callable[..., Path], tmp_path: Path
) -> None:
    folder = adapter_maker(tmp_path / "adapter", base_folder, seed=3, target_modules=["q_proj"])
    own, shared = tensors(merge_adapter(base, "adapter", folder)), tensors(base)
    assert own.keys() == shared.keys()
    assert {name for name in own if own[name] != shared[name]} == {name for name in own if "q_proj" in name}


def test_layers_that_the_adapter_changes_are_joined_like_the_bases(
    base: Any, base_folder: Path, adapter_maker: Callable[..., Path], tmp_path: Path
) -> None:
    folder = adapter_maker(tmp_path / "adapter", base_folder, seed=3, target_modules=["q_proj", "gate_proj", "up_proj"])
    layer = merge_adapter(base, "adapter", folder).model.layers[0]
    assert layer.mlp.gate_proj.fused is layer.mlp.up_proj.fused
    assert layer.mlp.gate_proj.fused not in (None, base.model.layers[0].mlp.gate_proj.fused)
    assert layer.self_attn.q_proj.fused is None, "k and v are the base's"


def test_an_adapter_of_another_shape_is_a_mismatch(
    base: Any, model_maker: Callable[..., Path], adapter_maker: Callable[..., Path], tmp_path: Path
) -> None:
    other = model_maker(tmp_path / "other", hidden=32)
    folder = adapter_maker(tmp_path / "adapter", other, seed=3)
    with pytest.raises(HoneError) as error:
        merge_adapter(base, "support", folder)
    assert error.value.reason.name == "AdapterMismatch"
    assert "'support'" in error.value.message


def test_an_adapter_of_a_deeper_model_is_a_mismatch(
    base_folder: Path, adapter_maker: Callable[..., Path], tmp_path: Path
) -> None:
    folder = adapter_maker(tmp_path / "adapter", base_folder, seed=3)
    shallow = AutoModelForCausalLM.from_pretrained(base_folder, num_hidden_layers=1)
    with pytest.raises(HoneError) as error:
        merge_adapter(shallow, "support", folder)
    assert error.value.reason.name == "AdapterMismatch"
    assert "only it has base_model.model.model.layers.1." in error.value.message


def test_an_adapter_names_no_module_to_import(
    base: Any, base_folder: Path, adapter_maker: Callable[..., Path], tmp_path: Path
) -> None:
    folder = adapter_maker(tmp_path / "adapter", base_folder, seed=3)
    config = json.loads((folder / "adapter_config.json").read_text())
    changed = config | {"megatron_config": {"a": 1}, "megatron_core": "antigravity"}
    (folder / "adapter_config.json").write_text(json.dumps(changed))
    with pytest.raises(HoneError, match="has megatron_config") as error:
        merge_adapter(base, "support", folder)
    assert error.value.reason.name == "AdapterMismatch"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"r": "abc"}, "ArtifactCorrupt"),
        ({"rank_pattern": {"a": None}}, "ArtifactCorrupt"),
        ({"target_modules": "((("}, "AdapterMismatch"),
        ({"rank_pattern": {"(": 8}}, "AdapterMismatch"),
        ({"layers_pattern": 1}, "ArtifactCorrupt"),
        ({"init_lora_weights": "eva", "eva_config": 1}, "AdapterMismatch"),
    ],
)
def test_a_configuration_that_peft_can_not_use_is_refused(
    base: Any,
    base_folder: Path,
    adapter_maker: Callable[..., Path],
    tmp_path: Path,
    changes: dict[str, Any],
    reason: str,
) -> None:
    folder = adapter_maker(tmp_path / "adapter", base_folder, seed=3)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | changes))
    with pytest.raises(HoneError) as error:
        merge_adapter(base, "support", folder)
    assert error.value.reason.name == reason


def test_an_adapter_in_bfloat16_as_qlora_saves_it_is_merged_exactly(
    base: Any, base_folder: Path, adapter_maker: Callable[..., Path], tmp_path: Path
) -> None:
    folder = adapter_maker(tmp_path / "adapter", base_folder, seed=3)
    weights = {name: tensor.bfloat16() for name, tensor in load_file(folder / "adapter_model.safetensors").items()}
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    reference = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_folder), folder).eval()
    assert torch.allclose(logits(merge_adapter(base, "adapter", folder)), logits(reference), atol=1e-4)


def test_each_adapter_answers_in_its_own_way(client: Any) -> None:
    answers = {
        model: client.completions.create(model=model, prompt="hello", max_tokens=16, temperature=0).choices[0].text
        for model in ("tiny-llama", "support", "legal")
    }
    assert len(set(answers.values())) == 3


def test_a_merged_artifact_answers_like_the_adapter(
    serve: Callable[..., AbstractContextManager[Any]],
    client: Any,
    seal_tree: Any,
    base: Any,
    base_folder: Path,
    artifact: Path,
    tmp_path: Path,
) -> None:
    tree = tmp_path / "tree"
    merge_adapter(base, "support", artifact / "adapter").save_pretrained(tree / "merged")
    for file in base_folder.glob("*token*"):
        shutil.copy(file, tree / "merged")
    shutil.copy(base_folder / "chat_template.jinja", tree / "merged")
    manifest = seal_tree(tree, "merged", BaseModelReference(claim="models", path="tiny-llama"))
    request = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 24, "temperature": 0}
    with serve(str(tree), "--expect", f"support={manifest.digest}", "--max-model-len", "64") as server:
        merged = server.client()
        (model,) = merged.models.list()
        assert (model.id, model.kind, model.digest) == ("support", "merged", manifest.digest)
        answer = merged.chat.completions.create(model="support", **request)
        too_long = server.post("/v1/completions", {"model": "support", "prompt": "hello", "max_tokens": 64})
    assert (
        answer.choices[0].message.content
        == client.chat.completions.create(model="support", **request).choices[0].message.content
    )
    assert "64 tokens" in too_long.json()["error"]["message"]
