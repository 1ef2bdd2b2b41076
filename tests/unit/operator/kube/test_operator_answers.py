"""An answer that does not come from the Kubernetes API is an error of its own kind, and the request is retried."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hone_operator.kube import client
from hone_operator.kube.client import ApiError, UnusableAnswer
from hone_operator.kube.list_pages import Listing, ListPage

OBJECT = {"metadata": {"name": "a", "uid": "u", "resourceVersion": "7"}}
ODD = ["<html>502</html>", "", "{", "[]", "null", "7", '"x"', "{}", '{"metadata": 7}', '{"metadata": {}}', "\ufeff{}"]


async def take(data: bytes) -> tuple[list[Any], str]:
    async def pages() -> AsyncIterator[ListPage]:
        yield ListPage(data)

    listing = Listing(pages(), lambda why: UnusableAnswer(200, why))
    return [item async for item in listing], listing.version


@pytest.mark.parametrize(
    "text",
    [
        *ODD,
        *(json.dumps({"items": [item], "metadata": {"resourceVersion": "7"}}) for item in (None, 7, [], {}, "x")),
        *(json.dumps({"items": [OBJECT], "metadata": {"resourceVersion": odd}}) for odd in (None, 7, "", "x", "²")),
        '{"items": [' + "[" * 5000 + "]" * 5000 + "]}",
    ],
)
def test_an_answer_other_than_a_list_of_objects_is_unusable(text: str) -> None:
    with pytest.raises(UnusableAnswer) as found:
        asyncio.run(take(text.encode()))
    assert isinstance(found.value, ApiError)
    assert not found.value.is_refusal


def test_an_answer_that_is_not_text_is_unusable() -> None:
    with pytest.raises(UnusableAnswer):
        asyncio.run(take(b"\xff\xfe\x00"))


def test_a_list_of_objects_is_taken() -> None:
    data = json.dumps({"items": [OBJECT], "metadata": {"resourceVersion": "9"}}).encode()
    assert asyncio.run(take(data)) == ([OBJECT], "9")


@pytest.mark.parametrize(
    "text",
    [
        *ODD,
        *(json.dumps({"type": "ADDED", "object": odd}) for odd in (None, 7, [], {}, {"metadata": {"name": "a"}})),
        json.dumps({"type": "BOOKMARK", "object": {"metadata": {}}}),
        json.dumps({"object": OBJECT}),
    ],
)
def test_a_line_other_than_a_watch_event_is_unusable(text: str) -> None:
    with pytest.raises(UnusableAnswer):
        client._read_event(200, text.encode())


@pytest.mark.parametrize(
    "event",
    [
        {"type": "ADDED", "object": OBJECT},
        {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "7"}}},
        {"type": "ERROR", "object": {"code": 410}},
    ],
)
def test_events_of_a_watch_are_read(event: dict[str, Any]) -> None:
    assert client._read_event(200, json.dumps(event).encode()) == event
