"""Tokens of spec.evaluation.prompts, which both the base model and the trained model answer."""

from collections.abc import Callable
from dataclasses import dataclass

from hone_api.finetunejobs.spec import EvaluationOptions
from hone_api.reasons import INVALID_SPEC, HoneError
from transformers import PreTrainedTokenizerBase

from hone_trainer.data import chat_templates


@dataclass(frozen=True)
class EvalPrompt:
    """A prompt as the model reads it (`tokens`, the chat template applied) and the longest answer, in tokens."""

    prompt: str
    tokens: list[int]
    max_new_tokens: int


def encode_prompts(
    options: EvaluationOptions | None, tokenizer: PreTrainedTokenizerBase, load_context: Callable[[], int | None]
) -> tuple[list[EvalPrompt], list[str]]:
    """Return the prompts in tokens, and warnings.

    `load_context` returns how many tokens the model can read; None: no limit. Raises HoneError InvalidSpec for a prompt
    that has no token, leaves no room for an answer, or is refused by the chat template; ChatTemplateMissing for a
    tokenizer with several templates and no default.
    """
    if options is None:
        return [], []
    found, warnings = [], []
    context, max_new_tokens = load_context(), options.max_new_tokens
    for index, prompt in enumerate(options.prompts):
        where = f"spec.evaluation.prompts[{index}]"
        tokens = _tokenize_prompt(prompt, tokenizer, where)
        if not tokens:
            raise HoneError(
                INVALID_SPEC,
                f"{where} is {prompt!r}, which gives no token",
                remedy="Give a prompt with text, and a chat template that prints it.",
            )
        room = context - len(tokens) if context else max_new_tokens
        if room < 1:
            raise HoneError(
                INVALID_SPEC,
                f"{where} has {len(tokens)} tokens, and the model reads {context}, its answer included",
                remedy="Shorten the prompt.",
            )
        if room < max_new_tokens:
            warnings.append(
                f"{where} has {len(tokens)} tokens of the {context} that the model reads: "
                f"its answer has at most {room} tokens, not {max_new_tokens}"
            )
        found.append(EvalPrompt(prompt, tokens, min(max_new_tokens, room)))
    return found, warnings


def _tokenize_prompt(prompt: str, tokenizer: PreTrainedTokenizerBase, where: str) -> list[int]:
    if not tokenizer.chat_template:
        return list(tokenizer(prompt)["input_ids"])
    chat_templates.find_template(tokenizer)
    try:
        text = chat_templates.render_messages(
            tokenizer, [{"role": "user", "content": prompt}], add_generation_prompt=True
        )
    except Exception as error:  # a template may raise any exception
        raise HoneError(
            INVALID_SPEC,
            f"{where} is refused by the chat template: {chat_templates.describe_template_error(error)}",
            remedy="Give a template that takes one message of a user, or remove spec.evaluation.",
        ) from error
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
