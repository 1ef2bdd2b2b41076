"""The limits of a model: token ids below the number of its embeddings, and a number of positions.

Beyond them training fails on the GPU with an index error, or, for rotary positions, continues with values that the
model has never been trained on. Both are detected here from the model without weights.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from hone_api.finetunejobs.training import TrainingArguments
from hone_api.reasons import INVALID_SPEC, MODEL_INVALID, HoneError
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from hone_trainer.checks.findings import Finding, make_findings
from hone_trainer.checks.row_places import find_places
from hone_trainer.data.dataset import LoadedDataset
from hone_trainer.data.statistics import Truncation, iterate_tokens

# Parts of the names of modules and buffers with one row for each position.
_TABLES = ("position", "wpe", "pos_enc")
# Parts of the names of modules that read something else than the text.
_NOT_TEXT = ("vision", "visual", "image", "img", "audio", "speech", "encoder")
# Kinds of rotary positions that reach `factor` times the original length.
_STRETCHED = ("linear", "dynamic", "yarn", "longrope", "llama3")


@dataclass(frozen=True)
class ModelLimits:
    """The limits of a model. None: no limit is known; beyond a hard limit of positions, training fails."""

    embeddings: int | None
    positions: int | None
    is_hard: bool


def read_model_limits(outline: PreTrainedModel) -> ModelLimits:
    """Read the limits of a model without weights."""
    positions, is_hard = _read_positions(outline)
    return ModelLimits(_read_embeddings(outline), positions, is_hard)


def check_ids(
    whole: Dataset,
    limits: ModelLimits,
    data: LoadedDataset,
    given: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    purpose: str,
) -> None:
    """Raise HoneError ModelInvalid for rows with tokens that the model has no embedding for."""
    if limits.embeddings is None:
        return
    largest, count, first, start = -1, 0, 0, 0
    for batch in iterate_tokens(whole):
        beyond = np.flatnonzero(batch.ids >= limits.embeddings)
        if len(beyond):
            rows = np.unique(np.searchsorted(batch.offsets, beyond, side="right") - 1)
            first = start + int(rows[0]) if not count else first
            largest, count = max(largest, int(batch.ids[beyond].max())), count + len(rows)
        start += len(batch.offsets) - 1
    if count:
        where = find_places(data, given, [first])[first]
        raise _make_unembedded_error(
            f"{count} of {len(whole)} rows {purpose} have", largest, limits, tokenizer, f" (first: {where})"
        )


def check_padding(limits: ModelLimits, tokenizer: PreTrainedTokenizerBase, training: TrainingArguments) -> None:
    """Raise HoneError InvalidSpec for a padding token that the model has no embedding for."""
    token = training.pad_token or tokenizer.pad_token or training.eos_token or tokenizer.eos_token
    number = tokenizer.get_vocab().get(str(token), 0)
    if limits.embeddings is None or number < limits.embeddings:
        return
    raise HoneError(
        INVALID_SPEC,
        f"Batches are padded with {token!r}, token {number} of the tokenizer, and the model has {limits.embeddings} "
        "embeddings",
        remedy="Name a token that the model has in spec.training.padToken.",
    )


def check_prompts(
    prompts: Sequence[list[int]], load_config: Callable[[], PreTrainedConfig], tokenizer: PreTrainedTokenizerBase
) -> None:
    """Raise HoneError ModelInvalid for prompts of spec.evaluation with tokens beyond the model's vocabulary."""
    if not prompts:
        return
    limit = getattr(load_config().get_text_config(), "vocab_size", None)
    for index, tokens in enumerate(prompts):
        if limit and max(tokens, default=0) >= limit:
            raise _make_unembedded_error(
                f"spec.evaluation.prompts[{index}] has",
                max(tokens),
                ModelLimits(limit, None, is_hard=False),
                tokenizer,
                "",
            )


def check_lengths(lengths: np.ndarray, limits: ModelLimits, args: Any, cut: Truncation, packing: bool) -> list[Finding]:
    """Return the rows that have more tokens, after cutting, than the model has positions.

    Raises HoneError InvalidSpec where training would fail for them.
    """
    limit = limits.positions
    if limit is None:
        return []
    cut_lengths = np.minimum(lengths, args.max_length) if args.max_length else lengths
    is_wrapped = packing and args.packing_strategy == "wrapped"
    longest = min(args.max_length, int(lengths.sum())) if is_wrapped else int(cut_lengths.max())
    if longest <= limit:
        return []
    if limits.is_hard:
        what = "Rows are packed into" if is_wrapped else "The longest row has, after cutting,"
        raise HoneError(
            INVALID_SPEC,
            f"{what} {longest} tokens with spec.training.maxLength {args.max_length}, and the model has {limit} "
            "positions",
            remedy=f"Set spec.training.maxLength to {limit} or less.",
        )
    rows = range(len(lengths)) if is_wrapped else np.flatnonzero(cut_lengths > limit).tolist()
    return make_findings(
        rows,
        f"are trained on with more than the {limit} positions that the model was made for, "
        f"up to {longest}: set spec.training.maxLength to {limit}, unless it is meant to learn longer texts",
    )


def _make_unembedded_error(
    subject: str, token: int, limits: ModelLimits, tokenizer: PreTrainedTokenizerBase, where: str
) -> HoneError:
    return HoneError(
        MODEL_INVALID,
        f"{subject} tokens that the model has no embedding for, such as {tokenizer.decode([token])!r}: it is token "
        f"{token} of the tokenizer, and the model has {limits.embeddings} embeddings{where}",
        remedy="Use the tokenizer that belongs to the model, or resize the model's embeddings "
        "(resize_token_embeddings) and save it.",
    )


def _read_embeddings(outline: PreTrainedModel) -> int | None:
    try:
        network: Any = outline
        table, head = network.get_input_embeddings(), network.get_output_embeddings()
    except NotImplementedError:
        return None
    sizes = [getattr(table, "num_embeddings", None), getattr(head, "out_features", None)]
    return min((size for size in sizes if isinstance(size, int)), default=None)


def _read_positions(outline: PreTrainedModel) -> tuple[int | None, bool]:
    """Return how many positions the model has, and whether more of them fail."""
    tables = [
        int(module.num_embeddings) - _count_offset_rows(module)
        for name, module in outline.named_modules()
        if isinstance(module, torch.nn.Embedding) and _names_positions(name)
    ]
    if tables:
        return min(tables), True
    config: Any = outline.config.get_text_config()
    if any("Rotary" in type(module).__name__ for module in outline.modules()):
        return None if getattr(config, "alibi", False) else _read_stretched_positions(config), False
    fixed = getattr(config, "max_seq_len", None)  # ALiBi of a fixed size
    buffers = [
        int(buffer.shape[0])
        for name, buffer in outline.named_buffers()
        if _names_positions(name) and buffer.dim() == 2 and buffer.shape[0] > 1
    ]
    if buffers:
        return min(buffers), True
    return (fixed, True) if isinstance(fixed, int) else (None, False)


def _names_positions(name: str) -> bool:
    parents, _, last = name.rpartition(".")
    return any(part in last for part in _TABLES) and not any(part in parents for part in _NOT_TEXT)


def _count_offset_rows(module: Any) -> int:
    """Return how many rows of a table come before the first position, as in OPT's and RoBERTa's."""
    offset = getattr(module, "offset", None)
    if isinstance(offset, int):
        return offset
    return 0 if module.padding_idx is None else int(module.padding_idx) + 1


def _read_stretched_positions(config: Any) -> int | None:
    limit = getattr(config, "max_position_embeddings", None)
    if not isinstance(limit, int) or limit < 1:
        return None
    given = getattr(config, "rope_parameters", None) or {}
    for rope in [given, *(value for value in given.values() if isinstance(value, dict))]:
        if rope.get("rope_type") in _STRETCHED and rope.get("factor"):
            original = rope.get("original_max_position_embeddings") or getattr(config, "max_position_embeddings", 0)
            limit = max(limit, int(original * rope["factor"]))
    return limit
