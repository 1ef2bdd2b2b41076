"""How several GPUs share a model that one of them can or can't hold."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from hone_api.artifacts.dataset_report import Lengths, SplitReport
from hone_api.finetunejobs.spec import FineTuneJob
from hone_api.reasons import HoneError
from hone_trainer.config.auto_profile import TrainingDevice
from hone_trainer.config.sft_config import make_sft_keywords
from hone_trainer.config.trl_config import make_sft_config
from hone_trainer.memory.architecture import build_meta_model
from hone_trainer.preparation.device_plan import DevicePlanner
from transformers import LlamaConfig

GIB = 2**30
ROWS = SplitReport(
    rows=100, tokens=50_000, trained_tokens=50_000, lengths=Lengths(p50=500, p95=600, max=700), truncated_rows=0,
    truncated_tokens=0, empty_rows=0, dropped_rows=0, duplicate_rows=0, kept_rows=100,
)  # fmt: skip
LLAMA_1B = LlamaConfig(
    hidden_size=2048, intermediate_size=5504, num_hidden_layers=24, num_attention_heads=32, vocab_size=32000
)


def planned(job: Any, gib: float, gpus: int, method: str = "full", nodes: int = 1, **training: Any) -> DevicePlanner:
    document = job(method=method, resources={"gpus": gpus, "nodes": nodes})
    document["spec"]["training"] = {"bf16": True, **training}
    spec = FineTuneJob.model_validate(document).spec
    device = TrainingDevice("gpu", "a GPU", round(gib * GIB), has_bfloat16=True, has_flash_attention=False, cores=8)
    return DevicePlanner(spec, build_meta_model(LLAMA_1B), device, ROWS, 1024)


@pytest.mark.parametrize(
    ("gib", "gpus", "training", "sharding"),
    [
        (64, 1, {}, "none"),
        (64, 4, {}, "ddp"),
        (16, 4, {}, "fsdp"),  # 1.3 billion parameters in float32 need 20 GiB before the first activation
        (16, 4, {"parallelism": "ddp"}, "ddp"),
        (64, 4, {"parallelism": "fsdp"}, "fsdp"),
    ],
)
def test_fsdp_is_chosen_when_one_gpu_can_not_hold_the_model(
    job: Any, gib: float, gpus: int, training: dict[str, Any], sharding: str
) -> None:
    assert planned(job, gib, gpus, **training).sharding == sharding


def test_the_estimate_is_for_the_chosen_sharding(job: Any, tmp_path: Any) -> None:
    split = planned(job, 16, 4)
    args = make_sft_config(make_sft_keywords(split.spec, tmp_path, True, split.choose_profile()))
    assert split.estimate(args).processes == 4
    assert split.estimate(args).total < 16 * GIB
    assert split.check_memory(args) == []


def test_the_gpus_of_all_nodes_share_a_model(job: Any) -> None:
    assert planned(job, 16, 1, nodes=2).sharding == "fsdp"
    assert planned(job, 64, 1, nodes=2).sharding == "ddp"


def test_a_job_that_fits_with_no_sharding_is_refused_before_a_step(job: Any, tmp_path: Any) -> None:
    small = planned(job, 4, 1)
    args = make_sft_config(make_sft_keywords(small.spec, tmp_path, True, small.choose_profile()))
    with pytest.raises(HoneError) as refused:
        small.check_memory(args)
    assert refused.value.reason.name == "ModelTooLarge"
    assert "a GPU has 4.0 GiB" in refused.value.message
    assert "spec." in refused.value.remedy


def test_a_paged_optimizer_on_a_gpu_is_reported(job: Any, tmp_path: Any) -> None:
    paged, other = planned(job, 64, 2, optim="paged_adamw_8bit"), planned(job, 64, 2, optim="adamw_8bit")
    on_cpu = replace(paged, outline=build_meta_model(LLAMA_1B), device=replace(paged.device, kind="cpu"))
    plans = [
        each.make_plan(partial(make_sft_keywords, each.spec, tmp_path, True))[0]  # settle takes the choices
        for each in (paged, other, on_cpu)
    ]
    words, *none = [[text for text in each.warnings if "spec.training.optim" in text] for each in plans]
    assert len(words) == 1
    assert "Set spec.training.optim: adamw_8bit or adamw_torch_fused" in words[0]
    assert none == [[], []]
    states = [each.estimate.optimizer_states for each in plans if each.estimate]
    assert states[0] == 0
    assert states[1] == states[2] > 0


@pytest.mark.parametrize("training", [{"fp16": True}, {"extra": {"dataloaderPinMemory": True}}])
def test_arguments_without_effect_on_a_cpu_are_reported(job: Any, training: dict[str, Any]) -> None:
    document = job(resources={"gpus": 0})
    document["spec"]["training"] = training
    device = TrainingDevice("cpu", "this CPU", 24 * GIB, has_bfloat16=False, has_flash_attention=False, cores=2)
    found = DevicePlanner(
        FineTuneJob.model_validate(document).spec, build_meta_model(LLAMA_1B), device, ROWS, 1024
    ).find_fields_without_effect()
    field = next(iter(training)) if "fp16" in training else "extra.dataloaderPinMemory"
    assert found == [f"spec.training.{field} has no effect on a CPU"]
