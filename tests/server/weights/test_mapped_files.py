"""Loaded weights are in memory: a file that changes, or gets shorter, changes no answer and ends no process."""

import gc
import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hone_server.artifacts.sources import find_model_sources
from hone_server.weights import loader
from hone_server.weights.batched_lora import LoraAdapter
from hone_server.weights.loader import copy_mapped_tensors, list_storages, load_adapter, load_base
from hone_server.weights.onednn_packing import prepack_weights
from long_matrix import sample
from transformers import AutoModelForCausalLM, Glm4MoeConfig, Glm4MoeForCausalLM, PreTrainedTokenizerFast

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
KINDS = {
    "plain": {"target_modules": ["q_proj", "v_proj", "up_proj"]},
    "dora": {"use_dora": True},
    "saved-head": {"modules_to_save": ["lm_head"]},
    "saved-norm": {"modules_to_save": ["norm"]},
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "trained-tokens": {"trainable_token_indices": [5, 6]},
    "bias": {"bias": "all"},
}
EACH = [("plain", base, adapter, widen) for base, adapter, widen in itertools.product(DTYPES, DTYPES, [False, True])]
EACH += [(kind, base, "bfloat16", False) for kind, base in itertools.product(KINDS, DTYPES)]


def mapped(folder: Path) -> list[str]:
    """Return the files below the folder that this process has mapped."""
    gc.collect()
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if str(folder) in line]


@pytest.fixture(scope="module")
def folders(base_folder: Path, adapter_maker: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("mapped")
    for name, dtype in DTYPES.items():
        shutil.copytree(base_folder, root / name)
        AutoModelForCausalLM.from_pretrained(base_folder, dtype=dtype).save_pretrained(root / name)
    for seed, (kind, options) in enumerate(KINDS.items()):
        adapter_maker(root / f"{kind}-float32", base_folder, seed=seed, **options)
        for name in ("bfloat16", "float16"):
            shutil.copytree(root / f"{kind}-float32", root / f"{kind}-{name}")
            cast_file(root / f"{kind}-{name}/adapter_model.safetensors", DTYPES[name])
    return root


def cast_file(path: Path, dtype: torch.dtype) -> None:
    from safetensors.torch import load_file, save_file

    save_file({key: tensor.to(dtype) for key, tensor in load_file(path).items()}, path)


def weights_of(loaded: Any) -> Any:
    if isinstance(loaded, LoraAdapter):
        return [tensor for pair in loaded.weights.values() for tensor in pair]
    return [tensor for tensor in itertools.chain(loaded.parameters(), loaded.buffers()) if not tensor.is_mkldnn]


@pytest.mark.parametrize(("kind", "base_dtype", "dtype", "widen"), sample(EACH, "mapped files", 8))
@pytest.mark.parametrize("adaptable", [True, False])
def test_no_file_stays_mapped(
    folders: Any, monkeypatch: pytest.MonkeyPatch, kind: Any, base_dtype: Any, dtype: Any, widen: Any, adaptable: bool
) -> None:
    monkeypatch.setattr(loader, "should_compute_in_float32", lambda *_: widen)
    folder = folders / f"{kind}-{dtype}"
    sources = find_model_sources(str(folders / base_dtype), name=None, adapters={"a": folder}, expected={}, claims={})
    base = load_base(sources, with_adapters=adaptable)
    assert mapped(folders) == []
    loaded = load_adapter(base, sources.entries[1])
    assert mapped(folders) == []
    if not isinstance(loaded, LoraAdapter):  # it shares with the base what the adapter does not change
        assert list_storages(loaded) & list_storages(base.model)
    prepack_weights([base.model, *([] if isinstance(loaded, LoraAdapter) else [loaded])])
    again = load_adapter(base, sources.entries[1])
    assert mapped(folders) == []
    for one, other in zip(weights_of(loaded), weights_of(again), strict=True):
        assert one.numel() * other.numel() == 0 or torch.equal(one, other)


@pytest.mark.parametrize("widen", [False, True])
def test_no_buffer_stays_mapped(
    tokenizer_maker: Callable[[], PreTrainedTokenizerFast], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, widen: bool
) -> None:
    monkeypatch.setattr(loader, "should_compute_in_float32", lambda *_: widen)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "first_k_dense_replace": 1}
    config = Glm4MoeConfig(vocab_size=350, **sizes, **experts, num_key_value_heads=2, max_position_embeddings=64)
    Glm4MoeForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path)
    tokenizer_maker().save_pretrained(tmp_path)
    base = load_base(
        find_model_sources(str(tmp_path), name=None, adapters={}, expected={}, claims={}), with_adapters=False
    )
    persistent = [name for name, _ in base.model.named_buffers() if "correction" in name]
    assert persistent
    assert mapped(tmp_path) == []


def test_tied_weights_stay_tied(base_folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base_folder)
    model.lm_head.weight = torch.nn.Parameter(model.model.embed_tokens.weight.data, False)
    before = model.lm_head.weight.data
    copy_mapped_tensors(model, list_storages(model))
    assert model.lm_head.weight.data_ptr() != before.data_ptr()
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
