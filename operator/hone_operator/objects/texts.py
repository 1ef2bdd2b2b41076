"""Cut texts of other programs before they reach a regular expression, a condition or an event.

A message of the API server repeats users' texts, and webhooks and kubelets write texts of any size. One text of
megabytes would delay the passes of all objects, and the API server would refuse a status that contains it.
"""

from typing import Any

# Bytes of a text that another program wrote. The kubelet cuts a container's termination message at the same size.
MAX_FOREIGN_TEXT_BYTES = 4096
# Bytes of a condition's message. The API server accepts as many characters.
MAX_CONDITION_BYTES = 32768
# Bytes that the API server accepts in an Event's message.
MAX_EVENT_BYTES = 1024

_ELLIPSIS = "…"


def truncate_text(text: str, max_bytes: int = MAX_FOREIGN_TEXT_BYTES) -> str:
    """Return the text in at most `max_bytes` bytes of UTF-8, with an ellipsis in place of its end if it was longer."""
    if len(text) * 4 <= max_bytes:
        return text
    data = text[: max_bytes + 1].encode("utf-8", "replace")
    if len(data) <= max_bytes:
        return text
    return data[: max_bytes - len(_ELLIPSIS.encode())].decode("utf-8", "ignore") + _ELLIPSIS


def truncate_all_texts(value: Any, max_bytes: int = MAX_FOREIGN_TEXT_BYTES) -> None:
    """Cut every text in parsed JSON, in place. Names of fields stay as they are."""
    waiting = [value]
    while waiting:
        found = waiting.pop()
        for at, inner in list(found.items() if isinstance(found, dict) else enumerate(found)):
            if isinstance(inner, str):
                if len(inner) * 4 > max_bytes:
                    found[at] = truncate_text(inner, max_bytes)
            elif isinstance(inner, dict | list):
                waiting.append(inner)
