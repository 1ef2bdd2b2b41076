"""Turn the configs of PEFT and TRL into fields of Hone's spec, without importing either library.

In: a `peft.LoraConfig` or a `trl.SFTConfig` that the caller made. Out: the fields whose values are not the defaults. A
value that Hone can't express is refused, because training would silently differ from what the caller wrote.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from enum import Enum
from typing import TYPE_CHECKING, Any

from hone_api.finetunejobs.spec import CheckpointOptions, LoraOptions
from hone_api.finetunejobs.training import EXTRA_FIELDS, HONE_SETS, TypedArguments
from pydantic.alias_generators import to_camel

from hone.errors import InvalidSpecError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

# LoRA's fields that describe what Hone always trains, or the library itself.
_LORA_FACTS = {"task_type": "CAUSAL_LM", "peft_type": "LORA"}
_LORA_NOTES = frozenset({"peft_version", "base_model_name_or_path", "revision"})
# Fields of SFTConfig that follow from others, which are written instead; some warn when they are read.
_DERIVED = frozenset({"gradient_checkpointing", "gradient_checkpointing_kwargs", "do_eval"})
# Hone chooses the folder of its output.
_IGNORED = frozenset({"output_dir"})
# On which devices a config is valid depends on these: the config to compare with has the same.
_DEVICE = ("use_cpu", "bf16", "fp16")


def convert_lora_config(config: "DataclassInstance") -> dict[str, Any]:
    """Return `spec.lora` for a `peft.LoraConfig`. Raises InvalidSpecError for a value that Hone can't express.

    PEFT and Hone have different defaults of `r`, `lora_alpha` and `target_modules`; these are always written.
    """
    given, defaults = _read_values(config), _read_values(_make_default(config, {}))
    ours = LoraOptions()
    found, refused = {}, []
    for name, value in given.items():
        if name in LoraOptions.model_fields:
            if value != getattr(ours, name):
                found[to_camel(name)] = value
        elif name not in _LORA_NOTES and value not in (defaults[name], _LORA_FACTS.get(name, defaults[name])):
            refused.append(_refuse("LoraConfig", name, value))
    targets = given.get("target_modules")
    if targets is None:
        refused.append(
            "LoraConfig.target_modules is None, for which PEFT chooses by architecture: set 'all-linear' or a list"
        )
    elif isinstance(targets, str) and targets != "all-linear":
        refused.append(f"LoraConfig.target_modules is the pattern {targets!r}: set 'all-linear' or a list of names")
    _raise_refused(refused)
    return found


def convert_sft_config(config: "DataclassInstance") -> tuple[dict[str, Any], dict[str, Any]]:
    """Return `spec.training` and `spec.checkpoint` for a `trl.SFTConfig`. Raises InvalidSpecError as for LoRA."""
    given = _read_values(config)
    defaults = _read_values(_make_default(config, {name: given[name] for name in _DEVICE if name in given}))
    defaults |= {"use_cpu": False, "fp16": False, "bf16": not given.get("fp16")}
    training: dict[str, Any] = {}
    checkpoint: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    refused = []
    for name, value in given.items():
        if value == defaults[name] or name in _IGNORED:
            continue
        if name in _HONE_TAKES and _HONE_TAKES[name](value):
            continue
        if name in CheckpointOptions.model_fields:
            checkpoint[to_camel(name)] = value
        elif name in HONE_SETS:
            refused.append(_refuse("SFTConfig", name, value))
        elif not _is_json(value):
            refused.append(f"SFTConfig.{name} is {value!r:.80}, which JSON does not have: use plain values")
        elif name in TypedArguments.model_fields:
            training[to_camel(name)] = value
        elif to_camel(name) in EXTRA_FIELDS:
            extra[to_camel(name)] = value
        else:
            refused.append(_refuse("SFTConfig", name, value))
    _raise_refused(refused)
    return training | ({"extra": extra} if extra else {}), checkpoint


# Values that mean what Hone does anyway: it evaluates every eval_steps where there are rows for it.
_HONE_TAKES: Mapping[str, Callable[[Any], bool]] = {
    "eval_strategy": lambda value: value == "steps",
    "report_to": lambda value: value in ("none", ["none"]),
}


def _make_default(config: "DataclassInstance", same: dict[str, Any]) -> "DataclassInstance":
    kind = type(config)
    try:
        return kind(**same)
    except Exception as error:  # the library's own checks
        raise InvalidSpecError(
            f"{kind.__name__} can't be compared with its defaults: {' '.join(str(error).split())}",
            "Give the fields as a dictionary instead, such as training={'learning_rate': 2e-4}.",
        ) from error


def _read_values(config: "DataclassInstance") -> dict[str, Any]:
    names = {field.name for field in fields(config)} - _DERIVED
    return {name: _simplify(getattr(config, name)) for name in sorted(names)}


def _simplify(value: Any) -> Any:
    """Return a value as JSON has it, where it has one; sets become sorted lists."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, tuple | list):
        return [_simplify(each) for each in value]
    if isinstance(value, dict):
        return {key: _simplify(each) for key, each in value.items()}
    return value


def _is_json(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, list):
        return all(map(_is_json, value))
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_json(each) for key, each in value.items())
    return value is None or isinstance(value, str | bool | int)


def _refuse(kind: str, name: str, value: Any) -> str:
    return f"{kind}.{name} is {value!r:.80}, which Hone has no field for"


def _raise_refused(sentences: list[str]) -> None:
    if sentences:
        raise InvalidSpecError("; ".join(sentences), "Remove these from the config, or change them.")
