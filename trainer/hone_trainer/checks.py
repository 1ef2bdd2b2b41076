"""What would otherwise fail late, or not at all and train something else: checked before and after tokenizing."""

import jinja2
from datasets import Dataset
from hone_api.reasons import CHAT_TEMPLATE_MISSING, DATASET_INVALID, INVALID_SPEC, HoneError
from hone_api.training import TrainingArguments
from transformers import PreTrainedTokenizerBase
from trl.chat_template_utils import (
    get_training_chat_template,
    has_generation_markers,
    is_chat_template_stop_token_trained,
)
from trl.data_utils import _tokenize, is_conversational

from hone_trainer.data import Data

LOOKED_AT = 1000
"""Rows that are tokenized once more, to see whether prompts end where completions begin."""


def before(data: Data, tokenizer: PreTrainedTokenizerBase, training: TrainingArguments) -> list[str]:
    """Check that the tokenizer can do what format and arguments need. Returns warnings.

    Raises HoneError ChatTemplateMissing, or InvalidSpec naming the field.
    """
    _tokens(tokenizer, training)
    if data.conversational and not tokenizer.chat_template:
        raise HoneError(
            CHAT_TEMPLATE_MISSING, "The dataset's rows are messages, and the tokenizer has no chat template"
        )
    if training.completion_only_loss and data.format != "prompt-completion":
        raise HoneError(
            INVALID_SPEC,
            f"spec.training.completionOnlyLoss is true, and the rows are {data.format}, which has no completion",
            remedy="Remove it"
            + (", or set assistantOnlyLoss." if data.conversational else ", or give prompt and completion."),
        )
    return _assistant_only(data, tokenizer) if training.assistant_only_loss else []


def chat_template(template: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """The template, when Jinja can read it. Raises HoneError InvalidSpec."""
    try:
        tokenizer.apply_chat_template([{"role": "user", "content": "a"}], chat_template=template, tokenize=False)
    except jinja2.TemplateSyntaxError as error:
        raise HoneError(
            INVALID_SPEC,
            f"spec.dataset.chatTemplate can't be read, line {error.lineno}: {error.message}",
            remedy="Correct the Jinja template.",
        ) from None
    except jinja2.TemplateError:
        pass  # it may refuse this conversation and take the dataset's
    return template


def unaligned(given: Dataset, whole: Dataset, tokenizer: PreTrainedTokenizerBase, purpose: str) -> list[str]:
    """A warning when prompts, tokenized alone, are not how prompt and completion together begin.

    Then the model is trained on a context that it does not see when it is asked.
    """
    if "prompt" not in given.column_names:
        return []
    looked_at = min(LOOKED_AT, len(given))
    count = 0
    for row, tokens in zip(given.take(looked_at), whole.take(looked_at), strict=True):
        more = {"add_generation_prompt": True} if is_conversational(row) else {}
        prompt = _tokenize(tokenizer, row["prompt"], **more)["input_ids"]
        count += tokens["input_ids"][: len(prompt)] != prompt
    if not count:
        return []
    return [
        f"{count} of the first {looked_at} rows {purpose} have a prompt that ends otherwise when the completion "
        "follows it: end prompts at a token's boundary, such as a line break"
    ]


def refused_row(error: Exception, data: Data, tokenizer: PreTrainedTokenizerBase) -> Exception:
    """The failure that names the row for which tokenizing raised `error`; the error itself when no row explains it."""
    if isinstance(error, RuntimeError):
        if "assistant tokens" not in str(error):
            return error
        for where, row in data.rows():
            if all(message["role"] != "assistant" for message in row.get("messages") or row["completion"]):
                return HoneError(
                    DATASET_INVALID, f"{where} has no assistant message, and spec.training.assistantOnlyLoss is true"
                )
        return HoneError(
            INVALID_SPEC,
            "spec.training.assistantOnlyLoss is true, and the chat template marks no token of some assistant's turn",
            remedy="Correct the template's {% generation %} markers, or remove assistantOnlyLoss.",
        )
    for where, row in data.rows():
        messages = row["messages"] if "messages" in row else row["prompt"] + row["completion"]
        try:
            tokenizer.apply_chat_template(messages, tokenize=False)
        except jinja2.TemplateError as found:
            return HoneError(DATASET_INVALID, f"The chat template refuses {where}: {found}")
    return error


def _tokens(tokenizer: PreTrainedTokenizerBase, training: TrainingArguments) -> None:
    vocabulary = tokenizer.get_vocab()
    for field, token in (("eosToken", training.eos_token), ("padToken", training.pad_token)):
        if token is not None and token not in vocabulary:
            raise HoneError(
                INVALID_SPEC,
                f"spec.training.{field} is {token!r}, which is not in the tokenizer's vocabulary",
                remedy="Name a token that the tokenizer has, or remove the field.",
            )
    if not (training.eos_token or tokenizer.eos_token):
        raise HoneError(
            INVALID_SPEC,
            "spec.training.eosToken is left out, and the tokenizer has no end-of-sequence token",
            remedy="Name the token that ends a text.",
        )


def _assistant_only(data: Data, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    if not data.conversational:
        raise HoneError(
            INVALID_SPEC,
            f"spec.training.assistantOnlyLoss is true, and the rows are {data.format} without messages",
            remedy="Remove it, or give messages.",
        )
    template = None
    if not has_generation_markers(tokenizer.chat_template):
        try:
            template = get_training_chat_template(tokenizer)
        except ValueError:
            raise HoneError(
                INVALID_SPEC,
                "spec.training.assistantOnlyLoss is true, and the chat template has no {% generation %} markers",
                remedy="Remove it, or give a template that marks the assistant's turns in spec.dataset.chatTemplate.",
            ) from None
    if is_chat_template_stop_token_trained(tokenizer, chat_template=template):
        return []
    return [
        "the chat template leaves the token that ends an assistant's turn out of the loss: the model may not learn to "
        "stop. Put it inside {% generation %} in spec.dataset.chatTemplate"
    ]
