"""Reasons why tokenizing failed: the row that its chat template refuses, or in which it marks nothing to learn.

TRL's exceptions name no row. So each row is tokenized again with the same calls, until one fails.
`preparation.prepare` raises the failure that is returned.
"""

from typing import Any

import jinja2
from datasets import Dataset
from hone_api.reasons import DATASET_INVALID, INTERNAL_ERROR, INVALID_SPEC, HoneError
from transformers import PreTrainedTokenizerBase
from trl.data_utils import _tokenize, is_conversational

from hone_trainer.checks.contents import is_empty
from hone_trainer.checks.row_places import find_places
from hone_trainer.data import chat_templates
from hone_trainer.data.dataset import LoadedDataset
from hone_trainer.data.exact_numbers import restore_numbers
from hone_trainer.data.formats import get_conversation, get_template_arguments
from hone_trainer.runtime.errors import classify_error

REMEDY = "Correct the row, or give another template in spec.dataset.chatTemplate."


def explain_failure(
    error: Exception, given: Dataset, data: LoadedDataset, tokenizer: PreTrainedTokenizerBase, template: str | None
) -> Exception:
    """Return the failure that names the row of `given` for which tokenizing raised `error`, else `error` itself.

    `template` is the one that is used in place of the tokenizer's.
    """
    if classify_error(error).reason is not INTERNAL_ERROR and not isinstance(
        error, MemoryError
    ):  # a template requests any size
        return error
    marks_nothing = isinstance(error, RuntimeError) and "assistant tokens" in str(error)
    for index, row in enumerate(given):
        try:
            tokenize_as_trl(row, tokenizer, template)
        except Exception as found:  # a template may raise anything
            return _make_refusal(found, row, find_places(data, given, [index])[index], tokenizer)
    if marks_nothing or isinstance(error, OverflowError):
        return _find_unmarked(given, data, tokenizer, template) or error
    return error


def _find_unmarked(
    given: Dataset, data: LoadedDataset, tokenizer: PreTrainedTokenizerBase, template: str | None
) -> HoneError | None:
    """Return the refusal of the first conversation in which no token, or an empty text at the start, is marked."""
    for index, row in enumerate(given):
        if not is_conversational(row):
            continue
        try:
            masks = tokenize_as_trl(row, tokenizer, template, wants_mask=True)
        except OverflowError:  # transformers looks for the character before the first
            return _make_empty_text_error(find_places(data, given, [index])[index])
        if 1 not in masks:
            return _make_unmarked_error(row, find_places(data, given, [index])[index])
    return None


def tokenize_as_trl(
    row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, template: str | None, wants_mask: bool = False
) -> list[int]:
    """Tokenize a row with the calls that TRL makes, and return the mask of assistant tokens when it is wanted."""
    if not is_conversational(row):
        for column in ("prompt", "completion", "text"):
            if column in row:
                _tokenize(tokenizer, row[column])
        return []
    arguments = {"chat_template": template, **get_template_arguments(row)}
    if "prompt" in row:
        _tokenize(tokenizer, restore_numbers(row["prompt"]), add_generation_prompt=True, **arguments)
    done = _tokenize(tokenizer, get_conversation(row), return_assistant_tokens_mask=wants_mask, **arguments)
    return list(done.get("assistant_masks", []))


def _make_refusal(error: Exception, row: dict[str, Any], where: str, tokenizer: PreTrainedTokenizerBase) -> HoneError:
    """Return the refusal of one row: the fault of the data if the template refuses it, else the template's."""
    if not is_conversational(row):
        what = f"The tokenizer of spec.model fails for {where}: {chat_templates.describe_template_error(error)}"
        return HoneError(DATASET_INVALID, what, remedy="Correct the row, or use another tokenizer.")
    if type(error) is jinja2.TemplateError:  # what raise_exception raises
        return HoneError(
            DATASET_INVALID,
            f"The chat template refuses {where}: {chat_templates.describe_template_error(error)}",
            remedy=REMEDY,
        )
    hint = ""
    if chat_templates.needs_parts(tokenizer):
        hint = " The template takes content as a list of parts, such as [{type: text, text: …}], not as a string."
    return HoneError(
        INVALID_SPEC,
        f"The chat template fails for {where}: {chat_templates.describe_template_error(error)}.{hint}",
        remedy=chat_templates.CORRECT_THE_TEMPLATE,
    )


def _make_empty_text_error(where: str) -> HoneError:
    return HoneError(
        INVALID_SPEC,
        f"The rendering of {where} begins with an empty {{% generation %}}, which can't be marked, and "
        "spec.training.assistantOnlyLoss is true",
        remedy="Leave out rows that begin with an empty assistant message, or put the token that begins or ends a "
        "turn inside {% generation %} in spec.dataset.chatTemplate.",
    )


def _make_unmarked_error(row: dict[str, Any], where: str) -> HoneError:
    turns = [message for message in get_conversation(row) if message.get("role") == "assistant"]
    if not turns:
        return HoneError(
            DATASET_INVALID,
            f"{where} has no assistant message, and spec.training.assistantOnlyLoss is true",
            remedy="Leave such rows out, or remove assistantOnlyLoss.",
        )
    if all(map(is_empty, turns)):
        return HoneError(
            DATASET_INVALID,
            f"{where} has only empty assistant messages, of which the chat template marks nothing to learn, and "
            "spec.training.assistantOnlyLoss is true",
            remedy="Leave such rows out, or put the token that ends a turn inside {% generation %} in "
            "spec.dataset.chatTemplate.",
        )
    return HoneError(
        INVALID_SPEC,
        "spec.training.assistantOnlyLoss is true, and the chat template marks no token of the assistant's turns in "
        f"{where}",
        remedy="Correct the template's {% generation %} markers, or remove assistantOnlyLoss.",
    )
