"""The descriptions in spec.training about TRL are true of the installed TRL."""

import dataclasses
import re
from enum import Enum
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from hone_api.finetunejobs.sft_fields import SFT_CONFIG_FIELDS
from hone_api.finetunejobs.training import EXTRA_FIELDS, HONE_SETS, TrainingArguments, TypedArguments

# How descriptions put a default; the last is settled by SFTTrainer, when it sees the rows.
WORDS = {
    "on": True,
    "off": False,
    "none": None,
    "on where the device has it": True,
    "on for prompt-completion rows": None,
}


@pytest.fixture(scope="module")
def sft_config() -> type:
    return __import__("trl").SFTConfig  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def defaults(sft_config: type, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return sft_config(output_dir=str(tmp_path_factory.mktemp("sft")), use_cpu=True)


def described() -> dict[str, str]:
    found = {}
    for name, field in TypedArguments.model_fields.items():
        if default := re.search(r"TRL's default: (.*?)[.;](?:$| )", field.description or ""):
            found[name] = default[1]
    return found


def choices(annotation: Any) -> tuple[Any, ...]:
    """Return the values of a Literal, also inside `… | None`."""
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return tuple(value for part in get_args(annotation) for value in choices(part))


def test_names_are_those_of_sft_config(sft_config: type) -> None:
    names = {field.name for field in dataclasses.fields(sft_config)}
    assert names == SFT_CONFIG_FIELDS
    assert names >= HONE_SETS
    assert names >= TypedArguments.model_fields.keys()
    assert HONE_SETS | TypedArguments.model_fields.keys() | set(EXTRA_FIELDS.values()) == names


def test_described_defaults_are_trls(defaults: Any) -> None:
    assert len(described()) > 25
    for name, words in described().items():
        real = getattr(defaults, name)
        real = real.value if isinstance(real, Enum) else real
        told = WORDS[words] if words in WORDS else float(words) if re.fullmatch(r"[-\d.e]+", words) else words
        assert told == real, f"{name}: the description says {words}, TRL has {real!r}"


def test_a_field_without_a_described_default_has_none(defaults: Any) -> None:
    silent = TypedArguments.model_fields.keys() - described().keys()
    assert {name: getattr(defaults, name) for name in silent if getattr(defaults, name) is not None} == {
        "max_steps": -1
    }


def test_examples_and_choices_are_accepted(sft_config: type, tmp_path: Path) -> None:
    fields = TypedArguments.model_fields
    accepted = {name: choices(field.annotation) or field.examples for name, field in fields.items()}
    for name, values in accepted.items():
        if name in ("bf16", "fp16", "tf32", "pad_token"):  # need a device, or warn of their end
            continue
        for value in values or []:
            TrainingArguments.model_validate({name: value})
            sft_config(
                **{"output_dir": str(tmp_path), "use_cpu": True, "eval_strategy": "steps", "eval_steps": 5, name: value}
            )


def test_sft_config_arguments_are_what_the_user_wrote() -> None:
    written = {"learningRate": 1e-3, "packing": False, "extra": {"optimArgs": "a=1", "lossType": None}}
    assert TrainingArguments.model_validate(written).get_sft_arguments() == {
        "learning_rate": 1e-3, "packing": False, "optim_args": "a=1", "loss_type": None,
    }  # fmt: skip
    assert TrainingArguments().get_sft_arguments() == {}
