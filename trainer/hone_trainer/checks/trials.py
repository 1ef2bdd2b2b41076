"""Checks of arguments by making what training makes of them: optimizer, schedule, checkpointed function, data loader.

Libraries check most arguments when they use them, which is after the weights are loaded, or in the first step. Here the
same calls are made with a parameter of one number. `check_types` comes first, since libraries compare and divide their
arguments.
"""

from collections.abc import Callable, Iterable, Sized
from copy import copy
from dataclasses import fields
from math import ceil, isfinite
from typing import Any, get_type_hints

import torch
import torch._inductor
from accelerate.utils import DynamoBackend
from hone_api.finetunejobs.training import EXTRA_FIELDS, TrainingArguments
from hone_api.reasons import INVALID_SPEC, HoneError
from pydantic import TypeAdapter, ValidationError
from pydantic.alias_generators import to_camel
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer, get_scheduler
from transformers.utils.import_utils import is_liger_kernel_available
from trl.trainer.sft_config import SFTConfig

# The least value of fields of `extra`, where libraries divide by them or wait for them.
LEAST = {
    "pad_to_multiple_of": 1,
    "eval_accumulation_steps": 1,
    "dataloader_prefetch_factor": 1,
    "ddp_bucket_cap_mb": 1,
    "ddp_timeout": 1,
    "torch_empty_cache_steps": 1,
    "eval_delay": 0,
}
# The allowed values of fields of `extra` that libraries check late.
CHOICES = {
    "loss_type": ("nll", "dft"),
    "truncation_mode": ("keep_start", "keep_end"),
    "ddp_backend": ("nccl", "gloo", "mpi", "ccl", "hccl", "cncl", "mccl"),
    "include_num_input_tokens_seen": ("no", "all", "non_padding"),
}
OF_THE_OPTIMIZER = "adam_beta1 adam_beta2 adam_epsilon weight_decay learning_rate optim_args optim_target_modules optim"
OF_THE_SCHEDULE = "lr_scheduler_kwargs learning_rate warmup_steps lr_scheduler_type"
OF_THE_LOADER = "dataloader_multiprocessing_context dataloader_prefetch_factor dataloader_num_workers"
OF_CHECKPOINTING = "activation_checkpointing_kwargs"
WITH_KEYWORDS = "Set spec.training.extra.lrSchedulerKwargs to what the schedule needs, or choose another schedule."


def check_types(training: TrainingArguments) -> None:
    """Raise HoneError InvalidSpec for a value of `extra` of another type than SFTConfig's field."""
    hints = get_type_hints(SFTConfig)
    for key, value in training.extra.items():
        try:
            TypeAdapter(hints[EXTRA_FIELDS[key]]).validate_python(value, strict=True)
        except ValidationError as error:
            raise HoneError(
                INVALID_SPEC,
                f"spec.training.extra.{key} is {value!r}: {error.errors()[0]['msg']}",
                remedy="Give a value as TRL's SFTConfig describes it, or remove the field.",
            ) from None


def check_arguments(args: SFTConfig, outline: PreTrainedModel, device_kind: str) -> None:
    """Raise HoneError InvalidSpec for arguments with which training the model would fail for any rows."""
    for name, least in LEAST.items():
        value = getattr(args, name)
        if value is not None and value < least:
            raise _make_refusal(name, value, f"must be {least} or more")
    for name, choices in CHOICES.items():
        value = getattr(args, name)
        if value is not None and value not in choices:
            raise _make_refusal(name, value, f"must be one of {', '.join(choices)}")
    if args.torch_compile:
        _check_compilation(args)
    if args.use_liger_kernel and not is_liger_kernel_available():
        raise _make_refusal("use_liger_kernel", True, "needs the package liger-kernel, which is not installed")
    if (args.liger_kernel_config or {}).get("fused_linear_cross_entropy"):
        raise _make_refusal("liger_kernel_config", args.liger_kernel_config, "TRL refuses fused_linear_cross_entropy")
    coefficient = args.router_aux_loss_coef
    if coefficient and not hasattr(outline.config.get_text_config(), "output_router_logits"):
        raise _make_refusal("router_aux_loss_coef", coefficient, "needs a model with experts, and this one has none")
    if args.activation_offloading and device_kind == "cpu":
        raise _make_refusal("activation_offloading", True, "needs a GPU, from whose memory it moves activations")
    _try_arguments(args, OF_THE_OPTIMIZER, lambda tried: _make_optimizer(tried, outline))
    _try_arguments(args, OF_CHECKPOINTING, _run_checkpointed)


def _check_compilation(args: SFTConfig) -> None:
    backends = [backend.value.lower() for backend in DynamoBackend]
    backend, mode = args.torch_compile_backend, args.torch_compile_mode
    if backend and backend.lower() not in backends:
        raise _make_refusal("torch_compile_backend", backend, f"must be one of {', '.join(backends)}")
    modes = ["default", *torch._inductor.list_mode_options()] if mode else []
    if mode and mode not in modes:
        raise _make_refusal("torch_compile_mode", mode, f"must be one of {', '.join(dict.fromkeys(modes))}")


def check_steps(train: Sized, evaluation: Sized | None, args: SFTConfig, steps: int) -> list[str]:
    """Return a warning when nothing is evaluated. `steps` are those of an epoch.

    Raises HoneError InvalidSpec for arguments that training on the rows would fail with.
    """
    total = args.max_steps if args.max_steps > 0 else ceil(args.num_train_epochs * steps)
    _try_arguments(args, OF_THE_SCHEDULE, lambda tried: _make_schedule(tried, total))
    _try_arguments(args, OF_THE_LOADER, lambda tried: _make_loader(tried, train))
    columns: Iterable[str] = getattr(train, "column_names", ())
    if args.train_sampling_strategy == "group_by_length" and args.length_column_name in columns:
        raise _make_refusal("length_column_name", args.length_column_name, "names a column of tokens, not of lengths")
    if evaluation is None or args.eval_delay <= total:
        return []
    return [
        f"spec.training.extra.evalDelay is {args.eval_delay:g}, and training ends at step {total}: no evaluation "
        "follows"
    ]


def _make_optimizer(args: SFTConfig, outline: PreTrainedModel) -> None:
    optimizer, keywords = Trainer.get_optimizer_cls_and_kwargs(args, outline)
    if isinstance(optimizer, type) and not {"params", "model", "optimizer_dict"} & keywords.keys():
        optimizer([{"params": [_make_parameter()], "weight_decay": args.weight_decay}], **keywords)


def _make_schedule(args: SFTConfig, total: int) -> None:
    keywords: Any = args.lr_scheduler_kwargs
    schedule = get_scheduler(
        args.lr_scheduler_type,
        optimizer=torch.optim.SGD([_make_parameter()], lr=args.learning_rate),
        num_warmup_steps=args.get_warmup_steps(total),
        num_training_steps=total,
        scheduler_specific_kwargs=keywords,
    )
    if isinstance(schedule, LambdaLR):
        for step in {0, 1, total // 2, max(total - 1, 0), total}:
            factor: Any = schedule.lr_lambdas[0](step)
            if not isfinite(factor):
                raise ValueError(f"the learning rate at step {step} is {factor * args.learning_rate}")


def _run_checkpointed(args: SFTConfig) -> None:
    given: Any = args.activation_checkpointing_kwargs
    keywords = {"use_reentrant": False, **(given or {})}
    if keywords.pop("selective", False) and (keywords["use_reentrant"] or not args.activation_checkpointing):
        raise ValueError("selective needs activationCheckpointing: true, and use_reentrant: false")
    if args.activation_checkpointing:
        checkpoint(_pass_on, _make_parameter(), **keywords).backward()


def _pass_on(number: torch.Tensor) -> torch.Tensor:
    return number


def _make_loader(args: SFTConfig, rows: Any) -> None:
    DataLoader(
        rows,
        num_workers=args.dataloader_num_workers,
        multiprocessing_context=args.dataloader_multiprocessing_context,
        prefetch_factor=args.dataloader_prefetch_factor,
    )


def _make_parameter() -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.ones(1))


def _try_arguments(args: SFTConfig, names: str, make: Callable[[SFTConfig], None]) -> None:
    """Make something of the arguments. Raises HoneError InvalidSpec with the first field whose default would do."""
    try:
        make(args)
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        name = next((name for name in names.split() if _works_without(name, args, make)), names.split()[-1])
        raise _make_refusal(name, getattr(args, name), text) from error


def _works_without(name: str, args: SFTConfig, make: Callable[[SFTConfig], None]) -> bool:
    tried = copy(args)
    object.__setattr__(tried, name, next(field.default for field in fields(SFTConfig) if field.name == name))
    try:
        make(tried)
    except Exception:
        return False
    return True


def _make_refusal(name: str, value: Any, text: str) -> HoneError:
    key = to_camel(name)
    field = f"extra.{key}" if key in EXTRA_FIELDS else key
    return HoneError(
        INVALID_SPEC,
        f"spec.training.{field} is {getattr(value, 'value', value)!r}: {text}",
        remedy=WITH_KEYWORDS if name == "lr_scheduler_type" else "Correct it, or remove the field.",
    )
