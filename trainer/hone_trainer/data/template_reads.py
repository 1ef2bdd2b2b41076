"""Report what rows give to the chat template and the template ignores, or writes in an unintended way.

`dataset.load_rows` has counted the parts of the messages (`MessageCounts`); here a few short conversations are rendered
to see what the template makes of them. The template itself is used as TRL uses it. Next: `checks`, on the rendered
rows.
"""

import re

from transformers import PreTrainedTokenizerBase

from hone_trainer.data.chat_templates import PROBE, try_render_messages
from hone_trainer.data.dataset import LoadedDataset

# transformers hands each of them to the template under the other names, too.
REASONING = ("reasoning_content", "thinking", "reasoning")


def find_unread(data: LoadedDataset, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return a warning, with its count, for each thing in the rows that the chat template does not read as meant."""
    if not data.conversational or not tokenizer.chat_template:
        return []
    template, counts = _read_source(tokenizer), data.messages
    of = f"of {counts.messages} messages"
    warnings = [
        f"{count} {of} have the key {key}, which the chat template does not read: it is not learned"
        for key, count in counts.keys.items()
        if key != "name" and not any(_mentions(template, name) for name in (REASONING if key in REASONING else [key]))
    ]
    if counts.text_parts and data.layout.join_parts:
        warnings.append(
            f"{counts.text_parts} {of} have content in parts, which the chat template does not take: their texts are "
            "joined by line breaks"
        )
    if counts.text_arguments and _quotes_arguments(tokenizer):
        warnings.append(
            f"{counts.text_arguments} {of} have tool_calls whose arguments are a string, which the chat template "
            'writes as a quoted string: give them as objects, such as {"city": "Paris"}'
        )
    return warnings + _find_unread_columns(data, template)


def _find_unread_columns(data: LoadedDataset, template: str) -> list[str]:
    parts = [part for part in (data.train, data.evaluation) if part is not None]
    rows = sum(map(len, parts))
    used = {column: 0 for column in ("tools", "chat_template_kwargs") if column in data.layout.columns}
    unread: dict[str, int] = {}
    for part in parts:
        for column in used:
            for value in part[column]:
                if column == "tools":
                    used[column] += bool(value)
                else:
                    for name in value:
                        unread[name] = unread.get(name, 0) + (not _mentions(template, name))
    warnings = [
        f"{count} of {rows} rows set {name} in chat_template_kwargs, which the chat template does not read"
        for name, count in unread.items()
        if count
    ]
    if used.get("tools") and not _mentions(template, "tools"):
        warnings.append(
            f"{used['tools']} of {rows} rows have tools, which the chat template does not read: their definitions are "
            "not learned"
        )
    return warnings


def _read_source(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the sources of the tokenizer's templates; a tokenizer may have one for tools alone."""
    template = tokenizer.chat_template
    return "\n".join(template.values()) if isinstance(template, dict) else str(template)


def _mentions(template: str, name: str) -> bool:
    return re.search(rf"\b{re.escape(name)}\b", template) is not None


def _quotes_arguments(tokenizer: PreTrainedTokenizerBase) -> bool:
    arguments = '{"' + PROBE + '": 1}'
    call = {"id": "a12345678", "type": "function", "function": {"name": "find", "arguments": arguments}}
    rendered = try_render_messages(
        tokenizer,
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "", "tool_calls": [call]}],
    )
    return rendered is not None and f'\\"{PROBE}\\"' in rendered
