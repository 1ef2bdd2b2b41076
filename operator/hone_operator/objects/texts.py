"""Cut texts of other programs before they reach a regular expression, a condition or an event.

A message of the API server repeats users' texts, and webhooks and kubelets write texts of any size. One text of
megabytes would delay the passes of all objects, and the API server would refuse a status that contains it.
"""

from typing import Any

# Bytes of a text that another program wrote. The kubelet cuts a container's termination message at the same size.
LONGEST_FOREIGN = 4096
# Bytes of a condition's message. The API server accepts as many characters.
LONGEST_CONDITION = 32768
# Bytes that the API server accepts in an Event's message.
LONGEST_EVENT = 1024

_CUT = "…"


def cut(text: str, longest: int = LONGEST_FOREIGN) -> str:
    """Return the text in at most `longest` bytes of UTF-8, with an ellipsis in place of its end if it was longer."""
    if len(text) * 4 <= longest:
        return text
    data = text[: longest + 1].encode("utf-8", "replace")
    if len(data) <= longest:
        return text
    return data[: longest - len(_CUT.encode())].decode("utf-8", "ignore") + _CUT


def cut_all(value: Any, longest: int = LONGEST_FOREIGN) -> None:
    """Cut every text in parsed JSON, in place. Names of fields stay as they are."""
    waiting = [value]
    while waiting:
        found = waiting.pop()
        for at, inner in list(found.items() if isinstance(found, dict) else enumerate(found)):
            if isinstance(inner, str):
                if len(inner) * 4 > longest:
                    found[at] = cut(inner, longest)
            elif isinstance(inner, dict | list):
                waiting.append(inner)
