"""The traits read from the classes of the table's models agree with the behaviour of their tiny models."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from architecture_table import TABLE, Architecture
from hone_api.attention import choose_default_kernel
from hone_api.finetunejobs.spec import LoraOptions
from hone_api.reasons import HoneError
from hone_trainer.config.model_traits import find_mixing
from hone_trainer.memory.architecture import build_meta_model
from hone_trainer.models import lora_targets
from long_matrix import sample
from transformers import AutoModelForCausalLM

FIRST, SECOND = 7, 9
MOE = ["mixtral", "qwen2-moe", "qwen3-moe", "phimoe", "olmoe", "gpt-oss", "deepseek-v3", "granitemoe"]


def named(name: str) -> Architecture:
    return next(one for one in TABLE if one.name == name)


def mixes(network: Any) -> bool:
    """Return whether a row that is packed after another, as TRL packs rows, gets other answers than alone."""
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(3, 300, (1, length), generator=generator) for length in (FIRST, SECOND)]
    ends = torch.tensor([0, FIRST, FIRST + SECOND], dtype=torch.int32)
    packed = {
        "position_ids": torch.cat([torch.arange(FIRST), torch.arange(SECOND)])[None],
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends,
        "max_length_q": SECOND,
        "max_length_k": SECOND,
        "seq_idx": torch.tensor([[0] * FIRST + [1] * SECOND], dtype=torch.int32),
    }
    with torch.no_grad():
        alone = network(input_ids=rows[1], use_cache=False).logits
        try:
            together = network(input_ids=torch.cat(rows, 1), use_cache=False, **packed).logits[:, FIRST:]
        except (TypeError, ValueError):  # takes no positions; has no kernel that keeps rows apart
            return True
    return not torch.allclose(together, alone, atol=1e-4)


@pytest.mark.parametrize("architecture", sample(TABLE, "architectures: packing", 8), ids=lambda one: one.name)
def test_packing_is_refused_where_rows_mix(
    architecture: Architecture, make_architecture: Callable[[Architecture], Path]
) -> None:
    network: Any = AutoModelForCausalLM.from_pretrained(make_architecture(architecture)).eval()
    assert mixes(network) == (find_mixing(build_meta_model(architecture.make_config())) is not None)


@pytest.mark.parametrize("architecture", sample(TABLE, "architectures: kernels", 8), ids=lambda one: one.name)
def test_the_kernel_is_the_one_that_transformers_chooses_automatically(architecture: Architecture) -> None:
    outline = build_meta_model(architecture.make_config())
    assert choose_default_kernel(outline) == architecture.attention == outline.config._attn_implementation


@pytest.mark.parametrize("option", [{"use_dora": True}, {"lora_dropout": 0.1}])
@pytest.mark.parametrize("name", MOE)
def test_an_option_that_fused_experts_do_not_support_is_named(name: str, option: dict[str, Any]) -> None:
    outline = build_meta_model(named(name).make_config())
    with pytest.raises(HoneError) as refused:
        lora_targets.check_targets(LoraOptions(**option), outline)
    assert refused.value.reason.name == "InvalidSpec"
    assert "gate_up_proj" in refused.value.message
    assert "q_" in refused.value.remedy
    lora_targets.check_targets(LoraOptions(target_modules=["o_proj"], **option), outline)


@pytest.mark.parametrize(
    ("name", "target", "problem"),
    [
        ("llama", "lm_head", "output head"),
        ("llama-tied", "lm_head", "output head"),
        ("llama", "input_layernorm", "no linear layer"),
        ("llama", "self_attn", "holds layers"),
        ("llama", ".*_proj", "no layer of that name"),
        ("gpt2", "ln_1", "no linear layer"),
        ("mamba", "dt_proj", "without calling it"),
        ("mamba", "conv1d", "no linear layer"),
        ("jamba", "dt_proj", "without calling it"),
        ("phimoe", "router", "no linear layer"),
    ],
)
def test_a_target_that_can_not_be_adapted_is_refused(name: str, target: str, problem: str) -> None:
    with pytest.raises(HoneError) as refused:
        lora_targets.check_targets(LoraOptions(target_modules=[target]), build_meta_model(named(name).make_config()))
    assert problem in refused.value.message
    assert f"targetModules[0] is '{target}'" in refused.value.message


@pytest.mark.parametrize(
    ("name", "spec", "words"),
    [
        ("opt", {"training": {"packing": True}}, "spec.training.packing is true, and OPTForCausalLM"),
        ("llama", {"lora": {"targetModules": ["q_proj", "lm_head"]}}, "spec.lora.targetModules[1] is 'lm_head'"),
        ("qwen2-moe", {"lora": {"useDora": True}}, "spec.lora.useDora is true"),
    ],
)
def test_prepare_refuses_what_training_would(
    train_architecture: Callable[..., Any], tmp_path: Path, name: str, spec: dict[str, Any], words: str
) -> None:
    prepared = train_architecture(named(name), tmp_path / "out", command="prepare", **spec)
    assert (prepared.code, prepared.message["reason"]) == (64, "InvalidSpec")
    assert words in prepared.message["message"]
