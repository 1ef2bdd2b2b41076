"""What is kept of children in memory is bounded, whoever made them; what is kept in part is read when it is used."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hone_api.layout import MANAGED_BY_LABEL, MANAGER
from hone_operator import retention, sizes
from hone_operator.cache import Cache
from hone_operator.observe import Observer
from hone_operator.resources import (
    AUTOSCALERS,
    BUDGETS,
    CHILDREN,
    CLAIMS,
    CONFIGMAPS,
    DEPLOYMENTS,
    FINETUNEJOBS,
    INFERENCESERVICES,
    JOBS,
    PODS,
    SERVICES,
    Key,
    Object,
    Resource,
)

LABELS = {FINETUNEJOBS: "hone.dev/finetunejob", INFERENCESERVICES: "hone.dev/inferenceservice"}
MADE = [
    (FINETUNEJOBS, JOBS, "faq-train"),
    (FINETUNEJOBS, JOBS, "faq-prepare"),
    (FINETUNEJOBS, CONFIGMAPS, "faq-manifest"),
    (FINETUNEJOBS, SERVICES, "faq-train"),
    (FINETUNEJOBS, PODS, "any"),
    (INFERENCESERVICES, DEPLOYMENTS, "faq"),
    (INFERENCESERVICES, SERVICES, "faq"),
    (INFERENCESERVICES, CONFIGMAPS, "faq-adapters"),
    (INFERENCESERVICES, BUDGETS, "faq"),
    (INFERENCESERVICES, AUTOSCALERS, "faq"),
    (INFERENCESERVICES, PODS, "any"),
]
TEXTS = ["x" * 1_400_000, "x" * 150_000 + "\U0001f600", "\u4e16" * 300_000]
"""More than is kept of any object, and less."""


def owner(kind: Resource, version: int = 1) -> Object:
    metadata = {"name": "faq", "namespace": "team", "uid": "owner", "resourceVersion": str(version)}
    return {"metadata": metadata, "spec": {}}


def child(of: Resource, kind: Resource, name: str, version: int = 1, **more: Any) -> Object:
    labels = {MANAGED_BY_LABEL: MANAGER, LABELS[of]: "faq"}
    metadata = {"name": name, "namespace": "team", "uid": f"uid-{name}", "resourceVersion": str(version)}
    body = {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": metadata | {"labels": labels}}
    return body | {"spec": {"containers": [{"name": "a"}]}, "status": {"phase": "Running"}} | more


def memory_of(cache: Cache) -> int:
    """Of the bodies, roughly."""
    kept = [known for spaces in cache._objects.values() for space in spaces.values() for known in space.values()]
    return sum(sizes.measure(each) if isinstance(each, dict) else len(each.data) for each in kept)


@pytest.mark.parametrize(("of", "kind", "name"), MADE)
def test_a_child_that_hone_makes_is_kept_in_full_once_its_owner_exists(of: Resource, kind: Resource, name: str) -> None:
    cache, body = Cache(), child(of, kind, name)
    cache.put(kind, json.loads(json.dumps(body)))
    early = cache.get(kind, "team", name)
    assert early
    assert not retention.is_complete(early)
    assert early["metadata"] == body["metadata"]
    assert cache.lacks_pods(Key(of, "team", "faq")) == (kind == PODS)
    cache.put(of, owner(of))
    assert cache.put(kind, json.loads(json.dumps(body)))
    assert cache.get(kind, "team", name) == body
    assert not cache.put(kind, json.loads(json.dumps(body)))
    cache.remove(of, owner(of, 2))
    left = cache.get(kind, "team", name)
    assert left
    assert not retention.is_complete(left)


@pytest.mark.parametrize("kind", CHILDREN)
@pytest.mark.parametrize("text", TEXTS, ids=["ascii", "emoji", "chinese"])
@pytest.mark.parametrize("has_owner", [True, False])
def test_what_anybody_labels_takes_little_memory(
    kind: Resource, text: str, has_owner: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "PODS_BYTES", 100_000)
    cache = Cache()
    if has_owner:
        for of in LABELS:
            cache.put(of, owner(of))
    for number in range(6):
        of = (FINETUNEJOBS, INFERENCESERVICES)[number % 2]
        body = child(of, kind, f"other-{number}", data={"a": text}, status={"phase": "Running", "a": {"a": text}})
        body["metadata"]["labels"] |= {f"hone.dev/a{n}": "b" * 60 for n in range(100)}
        body["metadata"]["annotations"] = {"a": text[:20_000]}
        reference = {"apiVersion": "v1", "kind": "X", "name": text[:5000], "uid": text[:5000]}
        body["metadata"]["ownerReferences"] = [reference, reference | {"controller": True}]
        if kind == PODS:
            reference["kind"] = "Job"
        cache.put(kind, body)
    assert len(cache.all(kind)) == 6
    assert memory_of(cache) < 300_000


def test_the_pods_of_a_namespace_share_their_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "PODS_BYTES", 20_000)
    cache = Cache()
    cache.put(FINETUNEJOBS, owner(FINETUNEJOBS))

    def put(number: int, version: int = 1) -> bool:
        body = child(FINETUNEJOBS, PODS, f"pod-{number}", version, status={"phase": "Running", "podIP": "1.2.3.4"})
        body["spec"]["containers"][0]["args"] = ["x" * 1500]
        cache.put(PODS, body)
        return retention.is_complete(cache.get(PODS, "team", f"pod-{number}") or {})

    kept = [put(number) for number in range(20)]
    assert kept == sorted(kept, reverse=True)
    assert 2 < sum(kept) < 15
    assert [put(number, 2) for number in range(20)] == kept  # a new version takes the place of the one before
    [last] = [pod for pod in cache.all(PODS) if pod["metadata"]["name"] == "pod-19"]
    assert last["status"] == {"phase": "Running", "podIP": "1.2.3.4"}
    assert last["spec"] == {"containers": []}
    for number in range(20):
        cache.remove(PODS, child(FINETUNEJOBS, PODS, f"pod-{number}", 3))
    assert all(put(number, 4) for number in range(3))


def test_a_claim_of_usual_size_is_kept_without_its_owner() -> None:
    cache, body = Cache(), child(FINETUNEJOBS, CLAIMS, "faq", spec={"accessModes": ["ReadWriteMany"]})
    cache.put(CLAIMS, json.loads(json.dumps(body)))
    assert cache.get(CLAIMS, "team", "faq") == body


class Server:
    """An API server that has these objects, and notes what is read."""

    def __init__(self, *bodies: Object) -> None:
        self.bodies = bodies
        self.read: list[str] = []

    async def get(self, resource: Resource, _: str, name: str) -> Object | None:
        self.read.append(name)
        found = [b for b in self.bodies if (b["kind"], b["metadata"]["name"]) == (resource.kind, name)]
        return json.loads(json.dumps(found[0])) if found else None

    async def items(self, resource: Resource, _: str, **selectors: str) -> AsyncIterator[Object]:
        self.read.append(selectors["labelSelector"])
        for body in self.bodies:
            if body["kind"] == resource.kind:
                yield json.loads(json.dumps(body))


@pytest.mark.parametrize(("of", "kind", "name"), [each for each in MADE if each[1] != PODS])
def test_a_child_that_was_seen_before_its_owner_is_read_once(of: Resource, kind: Resource, name: str) -> None:
    body = child(of, kind, name)
    reference = {"apiVersion": of.api_version, "kind": of.kind, "name": "faq", "uid": "owner", "controller": True}
    body["metadata"]["ownerReferences"] = [reference]
    server, cache = Server(body), Cache()
    cache.put(kind, json.loads(json.dumps(body)))
    cache.put(of, owner(of))
    observer: Any = Observer(server, cache, None, None)  # type: ignore[arg-type]
    for _ in range(2):
        assert asyncio.run(observer._child(kind, owner(of), name)) == body
    assert server.read == [name]


@pytest.mark.parametrize("of", LABELS)
def test_pods_that_were_seen_before_their_owner_are_listed_once(of: Resource) -> None:
    bodies = [child(of, PODS, name) for name in ("a", "b")]
    server, cache, key = Server(*bodies), Cache(), Key(of, "team", "faq")
    for body in bodies:
        cache.put(PODS, json.loads(json.dumps(body)))
    cache.put(of, owner(of))
    observer: Any = Observer(server, cache, None, None)  # type: ignore[arg-type]
    for _ in range(2):
        asyncio.run(observer._complete_pods(key))
    assert cache.children(key, PODS) == bodies
    assert server.read == [f"app.kubernetes.io/managed-by=hone,{LABELS[of]}=faq"]
