"""Keyword arguments of SFTConfig from the spec: the user's settings, plus those that Hone controls.

Hone controls what a resumed run, several processes and its own checkpoints depend on. Input is the spec and the choices
of `auto_profile`; `trl_config` makes the SFTConfig. `find_setting_warnings` and `find_unserved_options` report settings
without the expected effect.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hone_api.artifacts.adapter_rules import MAX_LORA_RANK, list_refused_settings
from hone_api.finetunejobs.spec import FineTuneJobSpec, LoraOptions
from pydantic.alias_generators import to_camel

from hone_trainer.config.auto_profile import ATTENTION, Choice
from hone_trainer.memory.inputs import Sharding

FSDP = {
    "fsdp": True,
    # Sharded: every process writes its part of a checkpoint, and none holds all of it.
    "fsdp_config": {"version": 2, "reshard_after_forward": True, "state_dict_type": "SHARDED_STATE_DICT"},
}
# Settings of data loaders that a resumed run can repeat. Persistent workers draw fewer random numbers when an epoch
# begins than new ones, and batches out of order depend on how fast each worker is.
REPEATABLE = {"dataloader_persistent_workers": False, "dataloader_in_order": True}
# Arguments that Trainer applies only to an evaluation outside training, and then to the model itself.
ONLY_OUTSIDE_TRAINING = ("bf16_full_eval", "fp16_full_eval")
# The number of steps between evaluations that means: evaluate only at the last step.
AT_THE_END = 1_000_000_000


def make_sft_keywords(
    spec: FineTuneJobSpec,
    checkpoints: Path,
    use_cpu: bool,
    choices: Sequence[Choice] = (),
    sharding: Sharding = "none",
) -> dict[str, Any]:
    """Return the keyword arguments of SFTConfig for a run that saves into the folder `checkpoints`.

    `choices` are the profile's; the user's settings have precedence. `sharding` is how several processes share the
    model.
    """
    chosen = {choice.field: choice.value for choice in choices if choice.field != ATTENTION}
    written = chosen | spec.training.get_sft_arguments()
    evaluation = {"eval_strategy": "no"}
    if spec.has_evaluation:
        evaluation = {"eval_strategy": "steps", "eval_steps": written.get("eval_steps", AT_THE_END)}
    return {
        "logging_nan_inf_filter": False,  # otherwise a loss that is NaN would be logged as the mean of earlier ones
        "use_cpu": use_cpu,
        "ddp_find_unused_parameters": False,  # every trained weight takes part in every step
        **written,
        **REPEATABLE,
        "output_dir": str(checkpoints),
        "save_strategy": "steps",
        "save_steps": spec.checkpoint.save_steps,
        "report_to": "none",
        "disable_tqdm": True,
        **evaluation,
        **(FSDP if sharding == "fsdp" else {}),
    }


def find_unserved_options(spec: FineTuneJobSpec) -> list[str]:
    """Return what keeps vLLM from serving the adapter (vllm/lora/peft_helper.py), when no merged model is saved with
    it.
    """
    if spec.method == "full" or spec.output.save in ("merged", "both"):
        return []
    lora = spec.lora or LoraOptions()
    settings = {"use_dora": "spec.lora.useDora is true", "bias": f"spec.lora.bias is {lora.bias}"}
    found = [settings[name] for name in list_refused_settings(use_dora=lora.use_dora, bias=lora.bias)]
    if lora.r > MAX_LORA_RANK:
        found.append(f"spec.lora.r is {lora.r}, more than {MAX_LORA_RANK}")
    return [
        f"{what}: vLLM can't serve such an adapter. For serving on a GPU set output.save: merged or both, or merge it "
        "afterwards with `hone merge`"
        for what in found
    ]


def find_setting_warnings(spec: FineTuneJobSpec, has_gpu: bool) -> list[str]:
    """Return warnings to show before training: settings that do not have the effect they seem to have."""
    found = []
    if spec.resources.gpus and not has_gpu:
        found.append(f"spec.resources.gpus is {spec.resources.gpus}, and torch sees no GPU: training on the CPU")
    elif spec.resources.gpus and spec.training.get_sft_arguments().get("use_cpu"):
        found.append(f"spec.training.extra.useCpu is true: training on the CPU, without the {spec.resources.gpus} GPUs")
    if (spec.training.optim or "").startswith("paged_") and not has_gpu:
        found.append(f"spec.training.optim is {spec.training.optim}, and torch sees no GPU: its state is not paged")
    if spec.training.lr_scheduler_type == "constant" and spec.training.warmup_steps:
        found.append(
            "spec.training.lrSchedulerType is constant, which ignores warmupSteps: constant_with_warmup warms up"
        )
    if spec.training.eval_steps and not spec.has_evaluation:
        found.append("spec.training.evalSteps is set, but without evalFraction or evalSplit nothing is evaluated")
    found += [
        f"spec.training.extra.{to_camel(name)} has no effect: evaluations compute as training does"
        for name in ONLY_OUTSIDE_TRAINING
        if spec.training.get_sft_arguments().get(name)
    ]
    for name, value in REPEATABLE.items():
        if spec.training.get_sft_arguments().get(name, value) != value:
            key, used = to_camel(name), str(value).lower()
            found.append(f"spec.training.extra.{key} is not {used}, which a resumed run can't repeat: {used} is used")
    return found + find_unserved_options(spec)
