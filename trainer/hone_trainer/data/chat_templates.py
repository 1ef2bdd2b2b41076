"""Chat templates: check that one can be read, and render messages with it.

A template is a program that comes with the model or the manifest, and may raise any exception, not only Jinja's.
"""

import re
from typing import Any

import jinja2
from hone_api.reasons import CHAT_TEMPLATE_MISSING, INVALID_SPEC, HoneError
from transformers import PreTrainedTokenizerBase

from hone_trainer.data.messages import Message

PROBE = "hone-probe"
CORRECT_THE_TEMPLATE = "Correct the Jinja template, or give another one in spec.dataset.chatTemplate."


def check_syntax(template: str, tokenizer: PreTrainedTokenizerBase, subject: str) -> None:
    """Raise HoneError InvalidSpec when Jinja can't compile the template; `subject` begins the message."""
    try:
        tokenizer.apply_chat_template([{"role": "user", "content": "a"}], chat_template=template, tokenize=False)
    except (jinja2.TemplateSyntaxError, SyntaxError) as error:  # the latter is Python's, such as for too many blocks
        raise HoneError(
            INVALID_SPEC,
            f"{subject} can't be read, line {error.lineno}: {error.args[0]}",
            remedy=CORRECT_THE_TEMPLATE,
        ) from None
    except Exception:  # it may refuse this conversation and render those of the dataset
        return


def find_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the template that messages without tools are rendered with.

    Raises HoneError ChatTemplateMissing when the tokenizer has several, and none is named `default`.
    """
    template: Any = tokenizer.chat_template
    if not isinstance(template, dict):
        return str(template)
    if "default" not in template:
        raise HoneError(
            CHAT_TEMPLATE_MISSING,
            f"The tokenizer has several chat templates ({', '.join(sorted(template))}), and none is named default",
            remedy="Give the text of one of them in spec.dataset.chatTemplate.",
        )
    return str(template["default"])


def render_messages(tokenizer: PreTrainedTokenizerBase, messages: list[Message], **arguments: Any) -> str:
    """Return the text that the template makes of messages. Raises any exception that the template raises."""
    return str(tokenizer.apply_chat_template(messages, tokenize=False, **arguments))


def try_render_messages(tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> str | None:
    """Return the text that the template makes of messages, or None when it refuses them with any exception."""
    try:
        return render_messages(tokenizer, messages)
    except Exception:  # the template's own
        return None


def takes_text_parts(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the template writes the text of content that is a list of text parts, and nothing else."""
    rendered = try_render_messages(tokenizer, [{"role": "user", "content": [{"type": "text", "text": PROBE}]}]) or ""
    return PROBE in rendered and not re.search(r"""["']type["']""", rendered)


def needs_parts(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the template writes content that is a list of text parts, and not content that is a string."""
    rendered = try_render_messages(tokenizer, [{"role": "user", "content": PROBE}]) or ""
    return PROBE not in rendered and takes_text_parts(tokenizer)


def describe_template_error(error: Exception) -> str:
    """Return an exception of a template in one line; what `raise_exception` raises is the template's own sentence."""
    text = " ".join(str(error).split())[:300]
    return text if type(error) is jinja2.TemplateError else f"{type(error).__name__}{text and ': '}{text}"
