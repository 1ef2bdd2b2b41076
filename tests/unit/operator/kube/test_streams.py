"""A stream of one kind reports lists and watches that the API server refuses."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hone_operator.kube import reflector
from hone_operator.kube.client import ApiError
from hone_operator.objects.resources import FINETUNEJOBS, Object, Resource


class Api:
    """A client with empty lists, whose watches are refused a number of times."""

    def __init__(self, refusals: int) -> None:
        self.refusals = refusals
        self.version = 0

    def iterate_items(self, resource: Resource, namespace: str, **_: Any) -> "Listing":
        self.version += 1
        return Listing(str(self.version))

    async def watch(self, *_: Any) -> AsyncIterator[Object]:
        if self.refusals:
            self.refusals -= 1
            raise ApiError(403, "may not watch")
        yield {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": str(self.version)}}}
        await asyncio.Event().wait()


class Listing:
    def __init__(self, version: str) -> None:
        self.version = version

    def __aiter__(self) -> AsyncIterator[Object]:
        return self

    async def __anext__(self) -> Object:
        raise StopAsyncIteration


class Sink:
    def __init__(self) -> None:
        self.told: list[str] = []
        self.is_watched = asyncio.Event()

    def on_upsert(self, resource: Resource, body: Object) -> None: ...
    def on_delete(self, resource: Resource, body: Object) -> None: ...

    def on_relist(self, resource: Resource, namespace: str, uids: set[str], version: int) -> None:
        self.told.append("listed")
        if "unlisted" in self.told:
            self.is_watched.set()

    def on_relist_refused(self, resource: Resource, namespace: str, why: str) -> None:
        self.told.append("unlisted")


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reflector, "FIRST_PAUSE_SECONDS", 0.0)


def test_a_kind_that_cannot_be_watched_stays_unreadable_though_it_can_be_listed() -> None:
    async def run() -> list[str]:
        sink = Sink()
        stream = reflector.Reflector(sink, Api(refusals=6), FINETUNEJOBS, "")  # type: ignore[arg-type]
        task = asyncio.create_task(stream.run({(FINETUNEJOBS, ""): asyncio.Event()}))
        await asyncio.wait_for(sink.is_watched.wait(), 30)
        task.cancel()
        return sink.told

    told = asyncio.run(run())
    first = told.index("unlisted")
    assert set(told[:first]) == {"listed"}
    assert told[first:] == ["unlisted"] * (len(told) - first - 1) + ["listed"]
