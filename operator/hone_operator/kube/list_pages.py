"""Take a page of a Kubernetes list apart, one object at a time.

Python needs up to twenty times the bytes of JSON. Anybody may create large objects, and a page of them that is parsed
at once could take all of the operator's memory. client.py reads the bytes; reflector.py and snapshots.py reduce each
object before the next one is parsed.
"""

import json
import re
from collections.abc import AsyncIterator, Callable, Generator, Iterator

from hone_operator.objects import bounded_json
from hone_operator.objects.resources import Object

_SPACE = re.compile(r"[ \t\r\n]*")
_decode = json.JSONDecoder().raw_decode


class ListPage:
    """One page of a list. `metadata` is complete once all objects have been taken."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.metadata: Object = {}

    def items(self) -> Iterator[Object]:
        """Yield the page's objects in their order. Raises ValueError where the page is no JSON object."""
        taken = 0
        try:
            for item in self._split(self._data.decode("utf-8", "surrogatepass")):
                taken += 1
                yield item
        except RecursionError:  # an object is nested too deep for Python: cut off the deepest levels
            found = bounded_json.load_bounded_json(self._data)
            self.metadata = found.get("metadata") or {}
            yield from (found.get("items") or [])[taken:]

    def _split(self, text: str) -> Iterator[Object]:
        at = _expect(text, 0, "{")
        if text[at] == "}":
            return
        while True:
            name, at = _decode(text, at)
            at = _expect(text, _skip(text, at), ":")
            if name == "items" and text[at] == "[":
                at = yield from _find_elements(text, at)
            else:
                value, at = _decode(text, at)
                if name == "metadata":
                    self.metadata = value
            at = _skip(text, at)
            if text[at : at + 1] == "}":
                return
            at = _expect(text, at, ",")


class Listing:
    """The objects of a list, one at a time, so that the caller can drop each one before the next.

    `version` is the resourceVersion of the list, once all objects have been taken. `unusable` makes the exception that
    is raised where a page is not a list of Kubernetes objects.
    """

    def __init__(self, pages: AsyncIterator[ListPage], unusable: Callable[[str], Exception]) -> None:
        self._pages = pages
        self._unusable = unusable
        self.version = ""

    async def __aiter__(self) -> AsyncIterator[Object]:
        async for page in self._pages:
            try:
                for item in page.items():
                    if not is_object(item) or not is_version(item["metadata"].get("resourceVersion")):
                        raise ValueError("an item of the list is no object")
                    yield item
                version = page.metadata["resourceVersion"]
                if not is_version(version):
                    raise ValueError(f"{version!r:.100} is no version")
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                raise self._unusable(f"{error!r:.300}") from error
            self.version = version


def is_object(value: object) -> bool:
    """Return whether parsed JSON is a Kubernetes object that exists: it has a name and a uid."""
    metadata = value.get("metadata") if isinstance(value, dict) else None
    return isinstance(metadata, dict) and all(isinstance(metadata.get(name), str) for name in ("name", "uid"))


def is_version(value: object) -> bool:
    """Return whether parsed JSON is a resourceVersion."""
    return isinstance(value, str) and value.isascii() and value.isdecimal()


def _find_elements(text: str, at: int) -> Generator[Object, None, int]:
    """Yield the elements of the array that begins at a position; return where it ends."""
    at = _expect(text, at, "[")
    if text[at : at + 1] == "]":
        return at + 1
    while True:
        item, at = _decode(text, at)
        yield item
        at = _skip(text, at)
        if text[at : at + 1] == "]":
            return at + 1
        at = _expect(text, at, ",")


def _expect(text: str, at: int, sign: str) -> int:
    """Return the position of what follows a sign that has to be at a position."""
    at = _skip(text, at)
    if text[at : at + 1] != sign:
        raise ValueError(f"expected {sign!r} at {at} of a list")
    return _skip(text, at + 1)


def _skip(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    assert found
    return found.end()
