"""The choices of profile auto, case by case."""

from typing import Any

import pytest
from hone_api.artifacts.dataset_report import Lengths, SplitReport
from hone_api.finetunejobs.training import TrainingArguments
from hone_trainer.config.auto_profile import ModelTraits, StepShape, TrainingDevice, choose_profile

GIB = 2**30
MI300X = TrainingDevice("gpu", "MI300X", 192 * GIB, has_bfloat16=True, has_flash_attention=True, cores=96)
MI210 = TrainingDevice("gpu", "MI210", 64 * GIB, has_bfloat16=True, has_flash_attention=False, cores=8)
CPU = TrainingDevice("cpu", "this CPU", 24 * GIB, has_bfloat16=False, has_flash_attention=False, cores=2)


def rows(p50: int = 200, p95: int = 900, longest: int = 3000, mean: int = 256) -> SplitReport:
    return SplitReport(
        rows=1000, tokens=1000 * mean, trained_tokens=1000 * mean, lengths=Lengths(p50=p50, p95=p95, max=longest),
        truncated_rows=0, truncated_tokens=0, empty_rows=0, dropped_rows=0, duplicate_rows=0, kept_rows=0,
    )  # fmt: skip


def needs(gib_a_row: float, gib_a_checkpointed_row: float) -> Any:
    """Estimate 16 GiB plus an amount for each row of 1024 tokens."""

    def peak(step: StepShape) -> int:
        row = gib_a_checkpointed_row if step.checkpointing else gib_a_row
        return round(GIB * (16 + step.batch * step.length / 1024 * row))

    return peak


def chosen(
    device: TrainingDevice,
    peak: Any = None,
    data: SplitReport | None = None,
    traits: ModelTraits | None = None,
    **written: Any,
) -> dict[str, Any]:
    training = TrainingArguments.model_validate(written)
    limit = training.max_length or 1024
    found = choose_profile(training, device, data or rows(), limit, peak or needs(1, 0.1), traits or ModelTraits())
    assert len({choice.field for choice in found}) == len(found)
    return {choice.field: choice.value for choice in found}


def test_a_large_gpu_packs_and_keeps_the_rows_a_step() -> None:
    found = chosen(MI300X)
    assert found == {
        "bf16": True,
        "attn_implementation": "flash_attention_2",
        "packing": True,
        "activation_checkpointing": False,
        "per_device_train_batch_size": 2,  # of 1024 tokens: 8 rows of 256 on average
        "dataloader_num_workers": 4,
    }


def test_without_flash_attention_rows_are_grouped_by_length() -> None:
    assert chosen(MI210)["train_sampling_strategy"] == "group_by_length"
    assert chosen(MI210)["attn_implementation"] == "sdpa"
    assert "train_sampling_strategy" not in chosen(MI210, data=rows(p50=200, p95=220, longest=230))


@pytest.mark.parametrize(
    ("a_row", "checkpointed", "batch", "accumulation", "checkpointing"),
    [
        (1, 0.1, None, None, False),  # everything fits: TRL's batch of 8 is kept
        (10, 0.1, 4, 2, False),
        (40, 0.1, 1, 8, False),
        (60, 5, None, None, True),
        (60, 10, 4, 2, True),
        (600, 600, 1, 8, True),  # nothing fits: the estimate reports that
    ],
)
def test_batch_and_checkpointing_follow_memory(
    a_row: float, checkpointed: float, batch: int | None, accumulation: int | None, checkpointing: bool
) -> None:
    found = chosen(MI210, needs(a_row, checkpointed))
    assert found["activation_checkpointing"] is checkpointing
    assert found.get("per_device_train_batch_size") == batch
    assert found.get("gradient_accumulation_steps") == accumulation


@pytest.mark.parametrize(
    "written",
    [
        {"bf16": True},
        {"activationCheckpointing": True},
        {"perDeviceTrainBatchSize": 4},
        {"gradientAccumulationSteps": 4},
        {"trainSamplingStrategy": "random"},
        {"packing": False},
        {"dataloaderNumWorkers": 0},
    ],
)
@pytest.mark.parametrize("device", [MI300X, MI210, CPU])
def test_fields_that_the_user_wrote_are_not_chosen(device: TrainingDevice, written: dict[str, Any]) -> None:
    found = chosen(device, **written)
    assert not found.keys() & TrainingArguments.model_validate(written).get_sft_arguments().keys()


@pytest.mark.parametrize("written", [{"perDeviceTrainBatchSize": 4}, {"maxSteps": 10}, {"packing": False}])
def test_packing_is_not_chosen_when_it_would_change_the_rows_a_step(written: dict[str, Any]) -> None:
    assert "packing" not in chosen(MI300X, **written)


def test_a_cpu_without_bfloat16_computes_in_float32() -> None:
    found = chosen(CPU)
    assert found["bf16"] is False
    assert "dataloader_num_workers" not in found
    assert "bf16" not in chosen(CPU, fp16=True)


def test_a_cpu_trains_row_by_row_unless_a_batch_is_given() -> None:
    assert chosen(CPU) == {
        "bf16": False,
        "attn_implementation": "sdpa",
        "activation_checkpointing": False,
        "per_device_train_batch_size": 1,  # a row alone is not padded: there is no order to choose
        "gradient_accumulation_steps": 8,
    }
    written = chosen(CPU, perDeviceTrainBatchSize=4)
    assert written["train_sampling_strategy"] == "group_by_length"
    assert "gradient_accumulation_steps" not in written
    assert chosen(CPU, gradientAccumulationSteps=4)["train_sampling_strategy"] == "group_by_length"


def test_choices_by_memory_are_left_out_while_it_is_unknown() -> None:
    unknown = TrainingDevice("gpu", "the GPU", None, has_bfloat16=True, has_flash_attention=False, cores=8)
    assert chosen(unknown).keys() == {
        "bf16",
        "attn_implementation",
        "train_sampling_strategy",
        "dataloader_num_workers",
    }


def test_every_choice_has_a_reason_and_an_effect() -> None:
    for device in (MI300X, MI210, CPU):
        for choice in choose_profile(TrainingArguments(), device, rows(), 1024, needs(30, 1), ModelTraits()):
            assert choice.why
            assert (choice.effect == "packing") == (
                choice.field == "packing" or (device is MI300X and choice.field == "per_device_train_batch_size")
            )
            assert (choice.effect == "order") == (choice.field == "train_sampling_strategy")


@pytest.mark.parametrize(
    ("kernels", "device", "kernel"),
    [
        (("flash_attention_2", "sdpa", "eager"), MI300X, "flash_attention_2"),
        (("flash_attention_2", "sdpa", "eager"), MI210, "sdpa"),
        (("flash_attention_2", "eager"), MI300X, "flash_attention_2"),
        (("flash_attention_2", "eager"), MI210, "eager"),
        (("sdpa", "eager"), MI300X, "sdpa"),
        (("sdpa", "eager"), CPU, "sdpa"),
        (("eager",), MI300X, "eager"),
        (("eager",), CPU, "eager"),
    ],
)
def test_the_kernel_is_one_that_the_model_supports(kernels: Any, device: TrainingDevice, kernel: str) -> None:
    assert chosen(device, traits=ModelTraits("TinyForCausalLM", kernels))["attn_implementation"] == kernel


def test_a_model_that_mixes_packed_rows_is_not_packed() -> None:
    found = chosen(MI300X, traits=ModelTraits("TinyForCausalLM", mixes_rows="takes no positions"))
    assert found["attn_implementation"] == "flash_attention_2"
    assert "packing" not in found
    assert found["train_sampling_strategy"] == "group_by_length"


def test_the_batch_is_one_row_where_memory_is_not_estimated() -> None:
    found = chosen(MI210, lambda step: None)
    assert found["activation_checkpointing"] is True
    assert found["per_device_train_batch_size"] == 1
    assert found["gradient_accumulation_steps"] == 8


@pytest.mark.parametrize("device", [MI210, CPU, TrainingDevice("gpu", "the GPU", None, True, False, 8)])
@pytest.mark.parametrize("peak", [needs(60, 5), lambda step: None])
def test_checkpointing_is_off_in_a_model_that_does_not_support_it(device: TrainingDevice, peak: Any) -> None:
    assert (
        chosen(device, peak, traits=ModelTraits("TinyForCausalLM", can_checkpoint=False))["activation_checkpointing"]
        is False
    )
