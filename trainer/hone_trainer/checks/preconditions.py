"""Preconditions of tokenizing: the tokenizer has what the format and the arguments need."""

from hone_api.finetunejobs.training import TrainingArguments
from hone_api.reasons import CHAT_TEMPLATE_MISSING, INVALID_SPEC, HoneError
from transformers import PreTrainedTokenizerBase
from trl.chat_template_utils import get_training_chat_template, has_generation_markers

from hone_trainer.data import chat_templates
from hone_trainer.data.dataset import LoadedDataset


def check_tokenizer(data: LoadedDataset, tokenizer: PreTrainedTokenizerBase, training: TrainingArguments) -> None:
    """Raise HoneError ChatTemplateMissing, or InvalidSpec naming the field, when the rows can't be tokenized."""
    if data.conversational:
        if not tokenizer.chat_template:
            raise HoneError(
                CHAT_TEMPLATE_MISSING, "The dataset's rows are messages, and the tokenizer has no chat template"
            )
        chat_templates.check_syntax(chat_templates.find_template(tokenizer), tokenizer, "The tokenizer's chat template")
    if training.completion_only_loss and data.format != "prompt-completion":
        raise HoneError(
            INVALID_SPEC,
            f"spec.training.completionOnlyLoss is true, and the rows are {data.format}, which has no completion",
            remedy="Remove it"
            + (", or set assistantOnlyLoss." if data.conversational else ", or give prompt and completion."),
        )
    if training.assistant_only_loss:
        _check_markers(data, tokenizer)


def check_tokens(tokenizer: PreTrainedTokenizerBase, training: TrainingArguments) -> None:
    """Raise HoneError InvalidSpec for a token of spec.training that the tokenizer lacks, or for no token at the end."""
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


def _check_markers(data: LoadedDataset, tokenizer: PreTrainedTokenizerBase) -> None:
    if not data.conversational:
        raise HoneError(
            INVALID_SPEC,
            f"spec.training.assistantOnlyLoss is true, and the rows are {data.format} without messages",
            remedy="Remove it, or give messages.",
        )
    if not tokenizer.is_fast:
        raise HoneError(
            INVALID_SPEC,
            "spec.training.assistantOnlyLoss is true, and the tokenizer of spec.model is written in Python and does "
            "not report where a token stands in the text",
            remedy="Use a model with a fast tokenizer (tokenizer.json), or remove assistantOnlyLoss and give prompt "
            "and completion.",
        )
    if has_generation_markers(chat_templates.find_template(tokenizer)):
        return
    try:
        get_training_chat_template(tokenizer)
    except Exception:  # TRL renders the template, which may raise anything
        raise HoneError(
            INVALID_SPEC,
            "spec.training.assistantOnlyLoss is true, and the chat template has no {% generation %} markers",
            remedy="Remove it, or give a template that marks the assistant's turns in spec.dataset.chatTemplate.",
        ) from None
