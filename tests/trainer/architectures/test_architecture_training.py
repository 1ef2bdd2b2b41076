"""Each architecture of the table is prepared, trained, resumed and merged; unsupported ones are refused in prepare."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from architecture_table import TABLE, Architecture
from long_matrix import sample
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel

TrainArchitecture = Callable[..., Any]
PROMPT = torch.tensor([[40, 41, 42, 43, 44, 45, 46, 47]])


def load(folder: Path) -> PreTrainedModel:
    network: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return network.eval()


@torch.no_grad()
def logits_of(network: Any) -> torch.Tensor:
    return network(input_ids=PROMPT, use_cache=False).logits


@pytest.mark.parametrize("architecture", sample(TABLE, "architectures: lora", 4), ids=lambda one: one.name)
def test_an_adapter_is_trained_resumed_and_merged(
    architecture: Architecture,
    make_architecture: Callable[[Architecture], Path],
    train_architecture: TrainArchitecture,
    forget_the_end: Callable[[Path, int], None],
    tmp_path: Path,
) -> None:
    spec = {"method": "lora", "output": {"save": "both"}}
    prepared = train_architecture(architecture, tmp_path / "out", command="prepare", **spec)
    assert prepared.code == 0, prepared.log
    assert (prepared.message.get("estimate") is None) == (architecture.unestimated is not None)
    assert (architecture.unestimated or "") in prepared.log
    left_out = f"PEFT can't adapt {architecture.left_out} of this model" if architecture.left_out else ""
    assert left_out in prepared.log
    assert ("PEFT can't adapt" in prepared.log) == bool(left_out)
    assert f"attnImplementation: {architecture.attention}," in prepared.log

    trained = train_architecture(architecture, tmp_path / "out", **spec)
    assert trained.code == 0, trained.log
    weights = tmp_path / "out/adapter/adapter_model.safetensors"
    before = weights.read_bytes()
    for name, tensor in load_file(weights).items():
        assert "lora_B" not in name or tensor.abs().max() > 0, f"{name} was not trained"

    forget_the_end(tmp_path / "out", 2)
    resumed = train_architecture(architecture, tmp_path / "out", **spec)
    assert resumed.code == 0, resumed.log
    assert "from the checkpoint at step 2 of 3" in resumed.log
    assert weights.read_bytes() == before

    base = load(make_architecture(architecture))
    plain = logits_of(base)
    adapted = logits_of(PeftModel.from_pretrained(base, tmp_path / "out/adapter").eval())
    merged = logits_of(load(tmp_path / "out/merged"))
    assert not torch.allclose(adapted, plain, atol=1e-4)
    assert torch.allclose(merged, adapted, atol=1e-4 * float(adapted.abs().max()))


@pytest.mark.parametrize("architecture", sample(TABLE, "architectures: full", 3), ids=lambda one: one.name)
def test_all_weights_are_trained_and_resumed(
    architecture: Architecture,
    make_architecture: Callable[[Architecture], Path],
    train_architecture: TrainArchitecture,
    forget_the_end: Callable[[Path, int], None],
    tmp_path: Path,
) -> None:
    trained = train_architecture(architecture, tmp_path / "out", method="full")
    assert trained.code == 0, trained.log
    weights = tmp_path / "out/model/model.safetensors"
    before = weights.read_bytes()
    forget_the_end(tmp_path / "out", 2)
    assert train_architecture(architecture, tmp_path / "out", method="full").code == 0
    assert weights.read_bytes() == before
    base, network = load(make_architecture(architecture)), load(tmp_path / "out/model")
    assert type(network) is type(base)
    assert not torch.allclose(logits_of(network), logits_of(base), atol=1e-4)
