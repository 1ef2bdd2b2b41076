"""How models write tool calls in their answers, and which of these ways a chat template teaches.

A format is found in the template of the model (`find_format`), or named by --tool-call-parser. `grammars` makes a
grammar of it, so that answers have exactly this form, and `tool_calls` reads them. Pure.
"""

import re
from dataclasses import dataclass, replace
from functools import lru_cache


@dataclass(frozen=True)
class ToolFormat:
    """One way to write calls: `before` the first one, each between `opening` and `closing`, with a `separator` between
    two, and `after` the last one. In a call the name stands between `opening` and `middle`, the arguments after it.

    trigger: the token that begins the calls, where free text may stand before them; None: an answer that begins with
    a call has nothing but calls. It is a part of `opening`, or of `before`.
    optional: a token that may stand before all, and is not shown.
    """

    name: str
    trigger: str | None
    opening: str
    middle: str
    closing: str
    separator: str
    before: str = ""
    after: str = ""
    optional: str | None = None
    short_ids: bool = False
    """Whether templates take none but ids of 9 letters and digits."""


HERMES = ToolFormat(
    "hermes", "<tool_call>", '<tool_call>\n{"name": "', '", "arguments": ', "}\n</tool_call>", separator="\n"
)
LLAMA3 = ToolFormat(
    "llama3_json", None, '{"name": "', '", "parameters": ', "}", separator="; ", optional="<|python_tag|>"
)
MISTRAL = ToolFormat(
    "mistral",
    "[TOOL_CALLS]",
    '{"name": "',
    '", "arguments": ',
    "}",
    separator=", ",
    before="[TOOL_CALLS][",
    after="]",
    short_ids=True,
)
GENERIC = ToolFormat("generic", None, '{"name": "', '", "arguments": ', "}", separator="\n")
"""For models whose template has no format that is known here, where a call is required."""

FORMATS = {known.name: known for known in (HERMES, LLAMA3, MISTRAL)}
MARKS = ("<tool_call>", "</tool_call>", "[TOOL_CALLS]")
"""What may be one token in the vocabulary of a model that has one of these formats."""
# Of templates that write arguments as XML, or names and arguments as special tokens.
OTHER_FORMS = ("<function=", "<arg_key>", "<parameter", "[ARGS]", "<\uff5ctool")


@lru_cache(maxsize=64)
def find_format(template: str | None) -> ToolFormat | None:
    """Return the format that a chat template describes; None when it has none, or another one."""
    if not template or any(form in template for form in OTHER_FORMS):
        return None
    if MISTRAL.before[:-1] in template:
        # The space is a part of the token before the bracket in the vocabularies of such models.
        return _SPACED_MISTRAL if re.search(r"\[TOOL_CALLS\] +\[", template) else MISTRAL
    if "<tool_call>" in template and _has_key(template, "name") and _has_key(template, "arguments"):
        return HERMES
    if "tools" in template and "ipython" in template and _has_key(template, "parameters"):
        return LLAMA3
    return None


def _has_key(template: str, key: str) -> bool:
    """Whether a JSON key is written in the template, in a string of Jinja or outside of one."""
    return re.search(rf'\\?"{key}\\?"\s*:', template) is not None


_SPACED_MISTRAL = replace(MISTRAL, before="[TOOL_CALLS] [")
