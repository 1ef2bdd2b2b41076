"""Cut texts that others wrote before they reach a pattern, a condition or an event.

A message of the API server repeats what a user wrote, and a webhook or a kubelet writes what it likes. One text of
megabytes would hold up the passes of all objects, and the API server would refuse the status that repeats it.
"""

from typing import Any

# Bytes of a text that another program wrote. The kubelet cuts a container's termination message at as many.
LONGEST_FOREIGN = 4096
# Bytes of a condition's message: the API server takes as many characters.
LONGEST_CONDITION = 32768
# Bytes that the API server takes in an Event's message.
LONGEST_EVENT = 1024

_CUT = "…"


def cut(text: str, longest: int = LONGEST_FOREIGN) -> str:
    """Return the text in at most so many bytes of UTF-8, with an ellipsis in the place of what is cut off."""
    if len(text) * 4 <= longest:
        return text
    data = text[: longest + 1].encode("utf-8", "replace")
    if len(data) <= longest:
        return text
    return data[: longest - len(_CUT.encode())].decode("utf-8", "ignore") + _CUT


def cut_all(value: Any, longest: int = LONGEST_FOREIGN) -> None:
    """Cut every text in parsed JSON, in its place. Names of fields stay as they are."""
    waiting = [value]
    while waiting:
        found = waiting.pop()
        for at, inner in list(found.items() if isinstance(found, dict) else enumerate(found)):
            if isinstance(inner, str):
                if len(inner) * 4 > longest:
                    found[at] = cut(inner, longest)
            elif isinstance(inner, dict | list):
                waiting.append(inner)
