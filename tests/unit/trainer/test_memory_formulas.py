"""The memory estimate's pure parts, for a Llama 2 7B given as numbers."""

from dataclasses import replace
from typing import Any

import pytest
from hone_api.gpus import GPUS
from hone_trainer.memory import advice, optimizer_states, render
from hone_trainer.memory.formulas import (
    FOUR_BITS,
    FRAGMENTATION,
    RUNTIME,
    count_host_only_bytes,
    count_host_state_bytes,
    estimate_memory,
)
from hone_trainer.memory.inputs import AdapterShape, Architecture, MemorySettings

LLAMA = Architecture(
    total=6_738_415_616,
    layers=32,
    layer=202_383_360,
    matrices=202_375_168,
    widest=45_088_768,
    linear=6_476_005_376,
    head=131_072_000,
    embedding=131_072_000,
    tied=False,
    hidden=4096,
    query_width=4096,
    key_value_width=4096,
    heads=32,
    intermediate=11008,
    gated=True,
    norm_width=8192,
    vocabulary=32000,
)
ADAPTER = AdapterShape(
    parameters=33_554_432,
    trainable=33_554_432,
    layer_parameters=1_048_576,
    targets=2,
    inputs=8192,
    outputs=8192,
    rank=64,
    dropout=False,
)
LORA = MemorySettings(LLAMA, "lora", ADAPTER, batch=4, length=1024, checkpointing=True, mixed=True)
FULL = replace(LORA, method="full", adapter=None)
GIB = 1024**3


@pytest.mark.parametrize("settings", [LORA, FULL, replace(LORA, method="qlora"), replace(FULL, accumulation=True)])
def test_the_parts_add_up(settings: MemorySettings) -> None:
    found = estimate_memory(settings)
    parts = (found.weights, found.gradients, found.optimizer_states, found.activations, found.logits)
    assert found.computed == sum(parts) + found.communication
    assert found.allowance == round(RUNTIME + FRAGMENTATION * found.computed)


@pytest.mark.parametrize(
    ("settings", "weights"),
    [
        (LORA, 6_738_415_616 * 2 + 33_554_432 * 4),
        (FULL, 6_738_415_616 * 2),
        (replace(LORA, method="qlora"), 6_476_005_376 * FOUR_BITS + 262_410_240 * 4 + 33_554_432 * 2),
        (replace(FULL, processes=8, sharding="fsdp"), 6_738_415_616 * 4 / 8),
        (replace(FULL, processes=8, sharding="ddp"), 6_738_415_616 * 2),
    ],
)
def test_weights_take_the_bytes_of_their_type(settings: MemorySettings, weights: float) -> None:
    assert estimate_memory(settings).weights == pytest.approx(weights)


def test_four_bits_are_the_papers_4_127() -> None:
    assert pytest.approx(4.127, abs=0.001) == FOUR_BITS * 8


@pytest.mark.parametrize(
    ("name", "width", "bytes_each"),
    [
        ("adamw_torch_fused", 4, 8),
        ("adamw_torch_fused", 2, 4),
        ("adamw_8bit", 4, 2.03),
        ("paged_adamw_32bit", 2, 8),
        ("sgd", 4, 0),
        ("lion_32bit", 4, 4),
        ("galore_adamw", 4, 8),
    ],
)
def test_optimizer_states_take_the_bytes_of_their_kind(name: str, width: int, bytes_each: float) -> None:
    assert optimizer_states.get_optimizer_memory(name).count_state_bytes(1_000_000, width) == pytest.approx(
        bytes_each * 1e6, rel=0.01, abs=1
    )


@pytest.mark.parametrize(
    ("more", "less"),
    [
        (replace(LORA, checkpointing=False), LORA),
        (replace(LORA, batch=8), LORA),
        (replace(LORA, length=4096), LORA),
        (LORA, replace(LORA, method="qlora")),
        (FULL, LORA),
        (FULL, replace(FULL, optimizer="adamw_8bit")),
        (replace(FULL, optimizer="adamw_torch"), FULL),
        (replace(FULL, processes=8, sharding="ddp"), replace(FULL, processes=8, sharding="fsdp")),
        (replace(LORA, full_logits=True, batch=16), replace(LORA, batch=16)),
        (replace(LORA, packed=True, batch=8), replace(LORA, batch=8)),
    ],
)
def test_settings_that_need_more_memory(more: MemorySettings, less: MemorySettings) -> None:
    assert estimate_memory(more).total > estimate_memory(less).total


def test_states_in_the_hosts_memory_need_none_of_the_device() -> None:
    paged = replace(FULL, optimizer="paged_adamw_32bit", pages=True)
    assert estimate_memory(paged).optimizer_states == 0
    assert count_host_state_bytes(paged) == 8 * LLAMA.total
    assert estimate_memory(replace(paged, pages=False)).optimizer_states == 8 * LLAMA.total
    assert count_host_state_bytes(replace(paged, pages=False)) == 0
    split = replace(paged, processes=8, sharding="fsdp")
    assert count_host_state_bytes(split) == LLAMA.total
    # bitsandbytes pages no small tensors, and an adapter's are small: its states count on both.
    adapter = replace(LORA, optimizer="paged_adamw_32bit", pages=True)
    assert estimate_memory(adapter).optimizer_states == count_host_state_bytes(adapter) == 8 * ADAPTER.trainable


def test_another_optimizer_is_not_suggested_when_the_states_are_on_the_host() -> None:
    paged = replace(FULL, optimizer="paged_adamw_32bit", pages=True, batch=64, checkpointing=False)
    advised = advice.suggest_changes(paged, 64 * GIB, ADAPTER)
    assert advised
    assert "spec.training.optim" not in {name for change in advised for name, _ in change.fields}


def test_with_more_shards_each_process_needs_less() -> None:
    totals = [estimate_memory(replace(FULL, processes=n, sharding="fsdp")).total for n in (2, 4, 8, 16, 32, 64)]
    assert totals == sorted(totals, reverse=True)


def test_the_memory_of_gpus_and_what_fits_them() -> None:
    assert {gpu.name: round(gpu.memory / GIB) for gpu in GPUS} == {
        "MI210": 64,
        "MI250X": 64,
        "MI300A": 128,
        "MI300X": 192,
        "MI308X": 192,
        "MI325X": 256,
        "MI350P": 144,
        "MI350X": 288,
        "MI355X": 288,
    }
    big = replace(FULL, batch=64, length=4096, checkpointing=False)
    assert len(advice.find_fitting_gpus(estimate_memory(LORA), GPUS)) == len(GPUS)
    assert not advice.find_fitting_gpus(estimate_memory(big), GPUS)


def test_states_in_the_hosts_memory_count_on_a_gpu_that_shares_it() -> None:
    paged = replace(FULL, optimizer="paged_adamw_32bit", pages=True)
    found, states = estimate_memory(paged), count_host_only_bytes(paged)
    assert states == count_host_state_bytes(paged) > 0
    for gpu in GPUS:
        shared = states if gpu.name == "MI300A" else 0
        assert advice.get_free_bytes(found, gpu, states) == gpu.memory - found.total - shared
    assert "MI300A" not in {gpu.name for gpu in advice.find_fitting_gpus(found, GPUS, 128 * GIB)}
    assert "MI300A" in render.describe_estimate(found, 1)
    assert "MI300A" not in render.describe_estimate(found, 1, uses_host=True)
    assert count_host_only_bytes(replace(LORA, optimizer="paged_adamw_32bit", pages=True)) == 0


@pytest.mark.parametrize(
    ("change", "gib"),
    [({"batch": 64, "length": 4096, "checkpointing": False}, 64), ({"batch": 64}, 64), ({}, 40), ({}, 8)],
)
def test_the_suggested_changes_fit(change: dict[str, Any], gib: int) -> None:
    settings = replace(FULL, **change)
    advised = advice.suggest_changes(settings, gib * GIB, ADAPTER)
    assert advised
    assert all(advice.fits_memory(found.estimate, gib * GIB) for found in advised)
    assert not advice.fits_memory(estimate_memory(settings), gib * GIB)


def test_one_field_is_suggested_before_several() -> None:
    settings = replace(LORA, batch=32, checkpointing=False, length=4096)
    found = advice.suggest_changes(settings, 288 * GIB)
    assert {name for change in found for name, _ in change.fields} == {
        "spec.training.activationCheckpointing",
        "spec.training.perDeviceTrainBatchSize",
        "spec.training.maxLength",
    }
    assert all(len(change.fields) == 1 for change in found)


def test_a_job_that_is_too_large_names_both_numbers_and_what_to_set() -> None:
    assert advice.make_too_large_error(LORA, 64 * GIB) is None
    error = advice.make_too_large_error(replace(LORA, batch=64, checkpointing=False), 64 * GIB, "MI210")
    assert error
    assert error.reason.name == "ModelTooLarge"
    assert "MI210 has 64.0 GiB" in error.message
    assert "(batch 64, 1024 tokens)" in error.message
    assert "Set spec.training.activationCheckpointing: true (" in error.remedy


def test_no_suggestion_when_nothing_helps() -> None:
    error = advice.make_too_large_error(LORA, 2 * GIB)
    assert error
    assert error.remedy == "Take a smaller model, or a GPU with more memory."
