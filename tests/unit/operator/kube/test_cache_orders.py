"""In any order of watch events and answers to writes, the cache ends with the server's state."""

import copy
from dataclasses import dataclass, field

from hone_operator.kube.cache import Cache
from hone_operator.objects.resources import JOBS, Key, Object
from hypothesis import example, given, settings
from hypothesis import strategies as st

TARGET = Key(JOBS, "team", "faq-train")


@dataclass
class Server:
    """One name on a server: its state, the pending events of its watch, and the pending answers."""

    version: int = 0
    lives: int = 0
    body: Object | None = None
    events: list[tuple[str, Object]] = field(default_factory=list)
    answers: list[Object] = field(default_factory=list)

    def write(self) -> None:
        """Create the object, or change it."""
        self.version += 1
        if self.body is None:
            self.lives += 1
        uid = f"uid-{self.lives}"
        kind = "MODIFIED" if self.body else "ADDED"
        metadata = {"name": TARGET.name, "namespace": "team", "uid": uid, "resourceVersion": str(self.version)}
        self.body = {"metadata": metadata}
        self.events.append((kind, self.body))
        self.answers.append(self.body)

    def delete(self) -> None:
        if self.body is None:
            return
        self.version += 1
        metadata = self.body["metadata"] | {"resourceVersion": str(self.version)}
        self.events.append(("DELETED", {"metadata": metadata}))
        self.body = None


def hear(cache: Cache, event: tuple[str, Object]) -> None:
    kind, body = event
    if kind == "DELETED":
        cache.remove(JOBS, copy.deepcopy(body))
    else:
        cache.put(JOBS, copy.deepcopy(body))


def hear_list(cache: Cache, server: Server) -> None:
    """List after a cut of the watch, whose pending events are lost."""
    server.events.clear()
    if server.body:
        cache.put(JOBS, copy.deepcopy(server.body))
    cache.keep_only(JOBS, "", {server.body["metadata"]["uid"]} if server.body else set(), server.version)


def refresh(cache: Cache, server: Server) -> None:
    """Read the object, as execution.py does: a cached one with another uid is gone."""
    known, found = cache.get(JOBS, "team", TARGET.name), copy.deepcopy(server.body)
    if known and (found is None or found["metadata"]["uid"] != known["metadata"]["uid"]):
        cache.remove(JOBS, known, for_good=found is not None)
    if found:
        cache.put(JOBS, found)


STEPS = st.tuples(st.sampled_from(["write", "delete", "hear", "answer", "list", "read"]), st.integers(0, 3))
NEVER_HEARD_OF = [("write", 0), ("delete", 0), ("list", 0)]
REPLACED_BY_A_LIST = [("write", 0), ("hear", 0), ("delete", 0), ("write", 0), ("list", 0), ("delete", 0)]


@settings(max_examples=500, deadline=None)
@given(st.lists(STEPS, max_size=25), st.booleans())
@example(REPLACED_BY_A_LIST, True)
@example(NEVER_HEARD_OF, True)
def test_the_cache_ends_with_the_servers_state_in_any_order_of_events(
    steps: list[tuple[str, int]], answers_come_last: bool
) -> None:
    cache, server = Cache(), Server()
    ends = [("hear", 0)] * 30 + [("answer", 0)] * 30
    for step, which in steps + (ends if answers_come_last else ends[::-1]):
        if step == "write":
            server.write()
        elif step == "delete":
            server.delete()
        elif step == "hear" and server.events:
            hear(cache, server.events.pop(0))
        elif step == "answer" and server.answers:
            answer = copy.deepcopy(server.answers.pop(which % len(server.answers)))
            if cache.may_be_gone(JOBS, answer):
                refresh(cache, server)
            else:
                cache.put(JOBS, answer)
        elif step == "list":
            hear_list(cache, server)
        elif step == "read":
            refresh(cache, server)
    assert not server.events
    assert not server.answers
    found = cache.get(JOBS, "team", TARGET.name)
    expected = server.body["metadata"] if server.body else None
    assert (found["metadata"] if found else None) == expected


def test_an_object_that_a_proxy_hid_for_a_while_comes_back() -> None:
    cache, server = Cache(), Server()
    server.write()
    hear(cache, server.events.pop())
    body, server.body = server.body, None
    refresh(cache, server)
    assert cache.get(JOBS, "team", TARGET.name) is None
    server.body = body
    hear_list(cache, server)
    found = cache.get(JOBS, "team", TARGET.name)
    assert found
    assert body
    assert found["metadata"] == body["metadata"]


def test_a_list_that_is_older_than_the_one_before_is_noticed() -> None:
    cache = Cache()
    cache.keep_only(JOBS, "", set(), 10)
    assert not cache.is_newer_than(JOBS, "", 10)
    assert cache.is_newer_than(JOBS, "", 9)
