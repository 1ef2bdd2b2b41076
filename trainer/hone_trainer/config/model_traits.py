"""What a model's class supports: attention kernels, activation checkpointing, and packed rows that stay apart.

Input is the model on the meta device; output decides the profile's choices and what is refused before a GPU is held.
Rows are packed padding-free: they follow each other in one row, and only their positions start from 0. A model keeps
them apart if it makes its attention mask from the positions, and only attention connects the tokens. No class declares
that, so it is read from its source. Next in the flow: auto_profile.py.
"""

import ast
import inspect
import re
import textwrap
from typing import Any

from hone_api.attention import find_kernels
from hone_api.reasons import INVALID_SPEC, HoneError
from transformers import PreTrainedModel
from trl.trainer.sft_config import SFTConfig

from hone_trainer.config.auto_profile import ModelTraits
from hone_trainer.memory.architecture import carries_state

# Functions of transformers.masking_utils that make the mask of a decoder.
MASK_MAKERS = re.compile(r"create_(\w+_)?causal_mask(s_\w+)?$")
POSITIONS = "position_ids"


def read_traits(outline: PreTrainedModel) -> ModelTraits:
    """Return the traits of a model on the meta device."""
    return ModelTraits(
        name=type(outline).__name__,
        kernels=find_kernels(outline),
        mixes_rows=find_mixing(outline),
        can_checkpoint=bool(outline.supports_gradient_checkpointing),
    )


def find_mixing(outline: PreTrainedModel) -> str | None:
    """Return why a row that is packed after others is not trained as if it were alone; None: it is."""
    if carries_state(outline):
        return "has layers that carry state from one token to the next"
    backbone = outline.base_model
    if POSITIONS not in inspect.signature(backbone.forward).parameters:
        return "takes no positions"
    return None if _masks_by_position(outline) else "does not make its attention mask from positions"


def check_traits(args: SFTConfig, traits: ModelTraits) -> None:
    """Raise HoneError InvalidSpec for arguments that the model's class does not support."""
    if args.activation_checkpointing and not traits.can_checkpoint:
        raise HoneError(
            INVALID_SPEC,
            f"spec.training.activationCheckpointing is true (the default), and {traits.name} does not support it",
            remedy="Set activationCheckpointing: false.",
        )
    packs = args.packing and args.packing_strategy != "wrapped"
    if not (packs or args.padding_free) or traits.mixes_rows is None:
        return
    field = "packing" if packs else "extra.paddingFree"
    raise HoneError(
        INVALID_SPEC,
        f"spec.training.{field} is true, and {traits.name} {traits.mixes_rows}: each row would be trained as if it "
        "continued the rows that are packed before it",
        remedy=f"Set {field}: false.",
    )


def _masks_by_position(outline: PreTrainedModel) -> bool:
    """Return whether all calls that make a causal mask in the source of a model's classes pass the positions on."""
    classes = {type(part).__qualname__: type(part) for part in outline.modules() if isinstance(part, PreTrainedModel)}
    calls = [passes for kind in classes.values() for passes in _find_mask_calls(kind)]
    return bool(calls) and all(calls)


def _find_mask_calls(kind: type) -> list[bool]:
    """Return, for each call that makes a causal mask in the source of a class, whether it passes the positions on."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    except (OSError, TypeError, SyntaxError):
        return [False]
    makers: set[str] = set()
    tables: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            names = {target.id for target in node.targets if isinstance(target, ast.Name)}
            of_names = {part.id for part in ast.walk(node.value) if isinstance(part, ast.Name)}
            if (isinstance(node.value, ast.Dict) and _has_positions(node.value)) or of_names & tables:
                tables |= names  # such as a copy of another table
            if isinstance(node.value, ast.IfExp | ast.Name) and any(map(_is_maker, ast.walk(node.value))):
                makers |= names
    return [
        _passes_positions(node, tables)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and (_is_maker(node.func) or getattr(node.func, "id", None) in makers)
    ]


def _is_maker(node: ast.AST) -> bool:
    return bool(MASK_MAKERS.match(getattr(node, "id", None) or getattr(node, "attr", None) or ""))


def _passes_positions(call: ast.Call, tables: set[str]) -> bool:
    for keyword in call.keywords:
        value: Any = keyword.value
        if keyword.arg == POSITIONS or (keyword.arg is None and getattr(value, "id", None) in tables):
            return True
    return False


def _has_positions(table: ast.Dict) -> bool:
    return any(isinstance(key, ast.Constant) and key.value == POSITIONS for key in table.keys)
