"""A base model that is already quantized: the served model has the values of its weights."""

import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, int8_vectorwise_dequant
from hone_server.artifacts.sources import ModelEntry, ModelSources
from hone_server.weights.batched_lora import LoraAdapter
from hone_server.weights.loader import load_adapter, load_base
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

KINDS = {
    "nf4": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True),
    "int8": BitsAndBytesConfig(load_in_8bit=True),
}
BLOCK = 128
# Of float8 e4m3.
LARGEST = 448


@pytest.fixture(scope="module")
def wide_folder(model_maker: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    return model_maker(tmp_path_factory.mktemp("wide") / "base", hidden=BLOCK)


@pytest.fixture(scope="module", params=KINDS)
def packed(request: pytest.FixtureRequest, wide_folder: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("packed") / request.param
    model = AutoModelForCausalLM.from_pretrained(
        wide_folder, dtype=torch.bfloat16, quantization_config=KINDS[request.param]
    )
    shutil.copytree(wide_folder, folder)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def fp8_folder(wide_folder: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a folder with weights as DeepSeek saves them: one block each, and its scale."""
    folder = tmp_path_factory.mktemp("fp8") / "fp8"
    shutil.copytree(wide_folder, folder)
    saved = {}
    for name, weight in load_file(folder / "model.safetensors").items():
        saved[name] = weight.to(torch.bfloat16)
        if "_proj" in name:
            scale = weight.abs().max() / LARGEST
            saved[name] = (weight / scale).to(torch.float8_e4m3fn)
            saved[f"{name}_scale_inv"] = scale.reshape(1, 1)
    save_file(saved, folder / "model.safetensors", {"format": "pt"})
    how = {"quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK], "activation_scheme": "dynamic"}
    configure(folder, dtype="bfloat16", quantization_config=how)
    return folder


def configure(folder: Any, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def loaded(folder: Any) -> Any:
    return load_base(
        ModelSources(str(folder), None, None, [ModelEntry("base", "base", str(folder))]), with_adapters=True
    )


def weights_of(folder: Any) -> Any:
    """Return the weights that bitsandbytes computes with, by the names of their layers."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    found = {}
    for name, layer in model.named_modules():
        weight = getattr(layer, "weight", None)
        if state := getattr(weight, "quant_state", None):
            found[name] = dequantize_4bit(weight.data, state)
        elif getattr(weight, "SCB", None) is not None:
            found[name] = int8_vectorwise_dequant(weight.data, weight.SCB)
    return found


def test_layers_of_bitsandbytes_become_plain_ones_of_the_same_values(packed: Any) -> None:
    base, expected = loaded(packed), weights_of(packed)
    assert len(expected) == 14
    for name, weight in expected.items():
        layer = base.model.get_submodule(name)
        assert isinstance(layer, torch.nn.Linear)
        torch.testing.assert_close(layer.weight.float(), weight.float(), rtol=2**-8, atol=2**-8)


def test_an_adapter_on_a_quantized_base_stays_unmerged_and_answers(
    packed: Any, serve: Callable[..., AbstractContextManager[Any]], adapter_maker: Callable[..., Path], tmp_path: Path
) -> None:
    folder = adapter_maker(tmp_path / "learned", packed, seed=1)
    assert isinstance(
        load_adapter(loaded(packed), ModelEntry("learned", "adapter", str(folder), folder=folder)), LoraAdapter
    )
    # With two adapters, neither is merged.
    adapters = ["--adapter", f"learned={folder}", "--adapter", f"again={folder}"]
    with serve(str(packed), "--name", "base", *adapters) as server:
        client = server.client()
        said = [
            client.completions.create(model=name, prompt="red", max_tokens=16, temperature=0).choices[0].text
            for name in ("base", "learned", "again")
        ]
    assert said[0] != said[1] == said[2]


def test_fp8_is_read_without_a_gpu(fp8_folder: Any, wide_folder: Any) -> None:
    plain = loaded(wide_folder).model.get_submodule("model.layers.0.mlp.up_proj").weight.float()
    found = loaded(fp8_folder).model.get_submodule("model.layers.0.mlp.up_proj")
    assert isinstance(found, torch.nn.Linear)
    assert found.weight.dtype in (torch.bfloat16, torch.float32)
    torch.testing.assert_close(found.weight.float(), plain, rtol=2**-3, atol=plain.abs().max().item() / LARGEST)


def test_a_kind_that_needs_another_package_is_refused_by_name(
    wide_folder: Any, run_to_end: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    folder = tmp_path / "packed"
    shutil.copytree(wide_folder, folder)
    configure(folder, quantization_config={"quant_method": "gptq", "bits": 4, "group_size": 128})
    code, said = run_to_end(str(folder))
    assert code == 66, said
    assert "ModelInvalid" in said
    assert "gptq" in said.lower()
    assert "Serve the model that it was made from" in said
    assert "Traceback" not in said
