"""Configs of the installed PEFT and TRL become the spec that trains the same, or are refused with the field's name."""

from typing import Any

import pytest
from hone.errors import InvalidSpecError
from hone.specs.library_configs import convert_lora_config, convert_sft_config
from hone_api.finetunejobs.spec import LoraOptions
from hone_api.finetunejobs.training import EXTRA_FIELDS, HONE_SETS, TrainingArguments, TypedArguments
from hypothesis import given, settings
from hypothesis import strategies as st

DEVICE = {"use_cpu": True, "bf16": False}
# Where Hone has a field, or does the same anyway.
TAKEN = {"save_steps", "save_total_limit", "output_dir", "do_eval"}
OTHER_VALUES: dict[str, Any] = {
    "learning_rate": 3e-4, "num_train_epochs": 1.0, "max_steps": 5, "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 4, "lr_scheduler_type": "cosine", "weight_decay": 0.1, "max_grad_norm": 0.5,
    "optim": "adamw_torch", "seed": 7, "max_length": 64, "packing": True, "completion_only_loss": True,
    "logging_steps": 3, "neftune_noise_alpha": 5.0, "activation_checkpointing": False, "adam_beta1": 0.8,
    "lr_scheduler_kwargs": {"num_cycles": 1}, "loss_type": "dft", "dataloader_drop_last": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def sft() -> Any:
    return __import__("trl").SFTConfig


@pytest.fixture(scope="module")
def lora() -> Any:
    return __import__("peft").LoraConfig


def test_defaults_of_trl_write_nothing_but_the_device(sft: Any) -> None:
    assert convert_sft_config(sft(**DEVICE)) == ({"bf16": False, "extra": {"useCpu": True}}, {})


@settings(deadline=None, max_examples=30)
@given(names=st.sets(st.sampled_from(sorted(OTHER_VALUES)), max_size=6))
def test_what_differs_is_written_and_trains_the_same(sft: Any, names: set[str]) -> None:
    given_ = {name: OTHER_VALUES[name] for name in names} | DEVICE
    training, checkpoint = convert_sft_config(sft(**given_))
    assert checkpoint == {}
    again = TrainingArguments.model_validate(training).get_sft_arguments()
    assert set(again) == set(given_)
    wanted, found = sft(**given_), sft(**again)
    for name in EXTRA_FIELDS.values() | TypedArguments.model_fields.keys():
        assert getattr(found, name) == getattr(wanted, name), name


def test_checkpoints_and_evaluation_go_where_hone_has_them(sft: Any) -> None:
    config = sft(output_dir="x", save_steps=9, save_total_limit=1, eval_strategy="steps", eval_steps=4, **DEVICE)
    training, checkpoint = convert_sft_config(config)
    assert checkpoint == {"saveSteps": 9, "saveTotalLimit": 1}
    assert training["evalSteps"] == 4


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("save_strategy", "epoch"),
        ("eval_strategy", "epoch"),
        ("push_to_hub", True),
        ("hub_model_id", "a/b"),
        ("report_to", ["tensorboard"]),
        ("model_init_kwargs", {"dtype": "bfloat16"}),
        ("resume_from_checkpoint", "x"),
        ("logging_strategy", "epoch"),
        ("dataset_text_field", "words"),
        ("gradient_checkpointing_kwargs", None),
    ],
)
def test_what_hone_decides_is_refused_by_name(sft: Any, name: str, value: Any) -> None:
    assert name in HONE_SETS
    config = sft(**{name: value}, **DEVICE)
    if value is None:
        assert convert_sft_config(config)
        return
    with pytest.raises(InvalidSpecError, match=rf"SFTConfig\.{name} is "):
        convert_sft_config(config)


def test_every_field_of_trl_is_written_or_refused(sft: Any) -> None:
    """A value that is not the default is never dropped."""
    for name in sorted(HONE_SETS - TAKEN):
        config = sft(**DEVICE)
        if not hasattr(config, name) or name in ("gradient_checkpointing", "gradient_checkpointing_kwargs"):
            continue
        object.__setattr__(config, name, "something else")
        with pytest.raises(InvalidSpecError, match=rf"SFTConfig\.{name} is 'something else'"):
            convert_sft_config(config)


def test_a_value_that_json_lacks_is_refused(sft: Any) -> None:
    with pytest.raises(InvalidSpecError, match=r"SFTConfig\.lr_scheduler_kwargs is .*inf"):
        convert_sft_config(sft(lr_scheduler_kwargs={"min_lr": float("inf")}, **DEVICE))


def test_a_lora_config_trains_the_same(lora: Any) -> None:
    """PEFT's own rank and scale are not Hone's: they are written even if the caller left them out."""
    assert convert_lora_config(lora(target_modules="all-linear")) == {"r": 8, "loraAlpha": 8}
    full = lora(r=16, lora_alpha=32, lora_dropout=0.1, target_modules=["v_proj", "q_proj"], task_type="CAUSAL_LM")
    assert convert_lora_config(full) == {"loraDropout": 0.1, "targetModules": ["q_proj", "v_proj"]}
    assert convert_lora_config(lora(target_modules="all-linear", use_dora=True, bias="all"))["useDora"]
    fields = convert_lora_config(lora(r=4, target_modules=["q_proj"], use_rslora=True))
    assert LoraOptions.model_validate(fields).use_rslora


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({}, "LoraConfig.target_modules is None"),
        ({"target_modules": ".*_proj"}, "LoraConfig.target_modules is the pattern '.*_proj'"),
        ({"modules_to_save": ["lm_head"]}, "LoraConfig.modules_to_save is ['lm_head']"),
        ({"task_type": "SEQ_CLS"}, "LoraConfig.task_type is 'SEQ_CLS'"),
        ({"rank_pattern": {"q_proj": 4}}, "LoraConfig.rank_pattern is {'q_proj': 4}"),
        ({"init_lora_weights": "pissa"}, "LoraConfig.init_lora_weights is 'pissa'"),
    ],
)
def test_what_hone_lacks_of_peft_is_refused_by_name(lora: Any, arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InvalidSpecError) as caught:
        convert_lora_config(lora(**{"target_modules": "all-linear"} | arguments if arguments else {}))
    assert sentence in str(caught.value)
