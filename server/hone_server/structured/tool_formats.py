"""The ways in which models write tool calls, and which of them a chat template uses.

The format is detected in the model's template (`detect_tool_call_format`), or named by --tool-call-parser. `grammars`
makes a grammar from it, so that answers have exactly this form, and `tool_calls` parses them. Pure.
"""

import re
from dataclasses import dataclass, replace
from functools import lru_cache


@dataclass(frozen=True)
class ToolCallFormat:
    """One way to write calls.

    An answer's calls are: `before`, the calls with a `separator` between two, `after`. One call is: `opening`, its
    name, `middle`, its arguments, `closing`.
    trigger: the token that begins the calls, if free text may precede them; it is a part of `opening` or of `before`.
    None: an answer that begins with a call has nothing but calls.
    optional: a token that may precede everything, and is not shown.
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
    # Whether templates accept only ids of 9 letters and digits.
    short_ids: bool = False


HERMES = ToolCallFormat(
    "hermes", "<tool_call>", '<tool_call>\n{"name": "', '", "arguments": ', "}\n</tool_call>", separator="\n"
)
LLAMA3 = ToolCallFormat(
    "llama3_json", None, '{"name": "', '", "parameters": ', "}", separator="; ", optional="<|python_tag|>"
)
MISTRAL = ToolCallFormat(
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
# For models whose template has no known format, when a call is required.
GENERIC = ToolCallFormat("generic", None, '{"name": "', '", "arguments": ', "}", separator="\n")

TOOL_CALL_FORMATS = {known.name: known for known in (HERMES, LLAMA3, MISTRAL)}
# Texts that may be one token in the vocabulary of a model with one of these formats.
TOOL_CALL_MARKERS = ("<tool_call>", "</tool_call>", "[TOOL_CALLS]")
# Signs of templates that write arguments as XML, or names and arguments as special tokens.
OTHER_FORMAT_MARKERS = ("<function=", "<arg_key>", "<parameter", "[ARGS]", "<\uff5ctool")


@lru_cache(maxsize=64)
def detect_tool_call_format(template: str | None) -> ToolCallFormat | None:
    """Return the format that a chat template describes; None if it has none, or an unknown one."""
    if not template or any(form in template for form in OTHER_FORMAT_MARKERS):
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
    """Return whether the template has this JSON key, inside or outside a string of Jinja."""
    return re.search(rf'\\?"{key}\\?"\s*:', template) is not None


_SPACED_MISTRAL = replace(MISTRAL, before="[TOOL_CALLS] [")
