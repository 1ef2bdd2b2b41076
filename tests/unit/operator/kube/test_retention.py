"""The memory for children is bounded, also for objects of users; partial children are read when they are needed."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hone_api.layout import MANAGED_BY_LABEL, MANAGER
from hone_operator.kube import retention
from hone_operator.kube.cache import Cache
from hone_operator.kube.pod_cache_limit import Place, Room
from hone_operator.objects import sizes
from hone_operator.objects.pod_fields import select_fields
from hone_operator.objects.resources import (
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
from hone_operator.reconcile.sync_failures import explain_pod_limit
from hone_operator.snapshots.objects import ObjectReader
from hypothesis import given
from hypothesis import strategies as st

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
# Texts above and below the limit of a kept object.
TEXTS = ["x" * 1_400_000, "x" * 150_000 + "\U0001f600", "\u4e16" * 300_000]


def owner(kind: Resource, version: int = 1) -> Object:
    metadata = {"name": "faq", "namespace": "team", "uid": "owner", "resourceVersion": str(version)}
    return {"metadata": metadata, "spec": {}}


def child(of: Resource, kind: Resource, name: str, version: int = 1, **more: Any) -> Object:
    labels = {MANAGED_BY_LABEL: MANAGER, LABELS[of]: "faq"}
    metadata = {"name": name, "namespace": "team", "uid": f"uid-{name}", "resourceVersion": str(version)}
    body = {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": metadata | {"labels": labels}}
    return body | {"spec": {"containers": [{"name": "a"}]}, "status": {"phase": "Running"}} | more


def memory_of(cache: Cache) -> int:
    """Return the rough memory of the bodies, in bytes."""
    kept = [known for spaces in cache._objects.values() for space in spaces.values() for known in space.values()]
    return sum(sizes.measure_memory(each) if isinstance(each, dict) else len(each.data) for each in kept)


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
def test_objects_with_copied_labels_take_little_memory(
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
    assert len(cache.list_objects(kind)) == 6
    assert memory_of(cache) < 300_000


def pod_of(namespace: str, of: str, number: int, size: int = 1500, version: int = 1) -> Object:
    body = child(FINETUNEJOBS, PODS, f"{of}-{number}", version, status={"phase": "Running", "podIP": "1.2.3.4"})
    body["metadata"] |= {"namespace": namespace, "uid": f"{namespace}-{of}-{number}"}
    body["metadata"]["labels"] |= {LABELS[FINETUNEJOBS]: of}
    body["spec"]["nodeSelector"] = {"a": "x" * size}
    return body


def owner_of(cache: Cache, namespace: str, name: str) -> Key:
    body = owner(FINETUNEJOBS)
    body["metadata"] |= {"namespace": namespace, "name": name, "uid": f"{namespace}-{name}"}
    cache.put(FINETUNEJOBS, body)
    return Key(FINETUNEJOBS, namespace, name)


def complete(cache: Cache, key: Key) -> int:
    return sum(retention.is_complete(pod) for pod in cache.list_children(key, PODS))


@pytest.fixture
def little_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "PODS_BYTES", 60_000)
    monkeypatch.setattr(retention, "REDUCED_BYTES", 60_000)


@pytest.mark.usefixtures("little_room")
@pytest.mark.parametrize("flood_first", [True, False])
@pytest.mark.parametrize("place", [("theirs", "flood"), ("team", "flood")])
def test_a_flood_of_pods_harms_only_its_own_object(flood_first: bool, place: tuple[str, str]) -> None:
    cache = Cache()
    flood, small = owner_of(cache, *place), owner_of(cache, "team", "small")
    floods = [pod_of(*place, number) for number in range(200)]
    smalls = [pod_of("team", "small", number) for number in range(4)]
    for body in floods + smalls if flood_first else smalls + floods:
        cache.put(PODS, body)
    assert complete(cache, small) == 4
    assert cache.count_unknown_pods(small) == (0, 0)
    assert 2 < complete(cache, flood) < 20
    assert memory_of(cache) < 150_000
    unknown = cache.count_unknown_pods(flood)
    assert complete(cache, flood) + sum(unknown) == 200
    assert len(cache.list_children(flood, PODS)) + unknown.dropped == 200
    trouble = explain_pod_limit(flood, cache.get(*_place(flood)) or {}, unknown)
    assert trouble
    assert trouble.stops_pods
    assert (
        f"--selector app.kubernetes.io/managed-by=hone,hone.dev/finetunejob={flood.name}"
        in trouble.error.format_message()
    )
    for body in floods:
        body["metadata"]["resourceVersion"] = "2"
        cache.remove(PODS, body)
    assert cache.count_unknown_pods(flood) == (0, 0)
    assert all(cache.put(PODS, pod_of(*place, number, version=3)) for number in range(3))
    assert complete(cache, flood) == 3


def _place(key: Key) -> tuple[Resource, str, str]:
    return key.resource, key.namespace, key.name


@pytest.mark.usefixtures("little_room")
def test_many_objects_of_a_namespace_have_no_more_room_than_one() -> None:
    cache = Cache()
    small = owner_of(cache, "team", "small")
    for number in range(3):
        cache.put(PODS, pod_of("team", "small", number))
    for other in range(50):
        owner_of(cache, "theirs", f"flood-{other}")
        for number in range(3):
            cache.put(PODS, pod_of("theirs", f"flood-{other}", number))
    assert complete(cache, small) == 3


@pytest.mark.usefixtures("little_room")
def test_pods_without_an_object_are_bounded_too_and_a_list_forgets_the_dropped() -> None:
    cache, bodies = Cache(), [pod_of("team", "nobody", number) for number in range(300)]
    for body in bodies:
        cache.put(PODS, body)
    assert memory_of(cache) < 70_000
    key = owner_of(cache, "team", "nobody")
    assert cache.lacks_pods(key)
    assert cache.count_unknown_pods(key).dropped > 100
    cache.keep_only(PODS, "", set(), 10)
    assert cache.count_unknown_pods(key) == (0, 0)
    assert memory_of(cache) < 2000


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xy"), st.integers(0, 5), st.integers(0, 40))))
def test_the_limit_is_never_exceeded_and_nobody_loses_a_fair_share(steps: list[tuple[str, str, int, int]]) -> None:
    room, held = Room(100), dict[Place, tuple[str, int]]()
    for space, of, number, size in steps:
        place = Place(space, f"{of}{number}")
        held.pop(place, None)
        if size == 0:
            room.release(place)
            continue
        before = {each: sum(n for p, (_, n) in held.items() if p.namespace == each) for each in "ab"}
        gone = room.take(place, of, size)
        for victim in gone or []:
            held.pop(victim)
        if gone is not None:
            held[place] = of, size
            assert all(before[victim.namespace] > 50 or victim.namespace == space for victim in gone)
        else:
            assert before[space] + size > 50
        assert sum(size for _, size in held.values()) <= 100
        assert {each: size for each, (_, size) in held.items()} == {each: n for each, (_, n) in room._pods.items()}


def test_unused_fields_of_a_pod_take_no_memory() -> None:
    body = child(FINETUNEJOBS, PODS, "any")
    small = sizes.measure_memory(select_fields(body))
    many = [{"name": "a"}] * 4000
    body["spec"] |= {"containers": [{"name": "a", "env": many}], "volumes": [], "hostAliases": many}
    body["metadata"] |= {"annotations": {"a": "b" * 100_000}, "managedFields": many, "finalizers": ["a/b"] * 100}
    body["status"]["hostIPs"] = many
    assert sizes.measure_memory(select_fields(body)) < small + 1000


def test_a_claim_of_usual_size_is_kept_without_its_owner() -> None:
    cache, body = Cache(), child(FINETUNEJOBS, CLAIMS, "faq", spec={"accessModes": ["ReadWriteMany"]})
    cache.put(CLAIMS, json.loads(json.dumps(body)))
    assert cache.get(CLAIMS, "team", "faq") == body


class Server:
    """An API server with these objects, which records all reads."""

    def __init__(self, *bodies: Object) -> None:
        self.bodies = bodies
        self.read: list[str] = []

    async def get(self, resource: Resource, _: str, name: str) -> Object | None:
        self.read.append(name)
        found = [b for b in self.bodies if (b["kind"], b["metadata"]["name"]) == (resource.kind, name)]
        return json.loads(json.dumps(found[0])) if found else None

    async def iterate_items(self, resource: Resource, _: str, **selectors: str) -> AsyncIterator[Object]:
        self.read.append(selectors["labelSelector"])
        for body in self.bodies:
            if body["kind"] == resource.kind:
                yield json.loads(json.dumps(body))


@pytest.mark.parametrize(("of", "kind", "name"), [each for each in MADE if each[1] != PODS])
def test_a_child_that_was_reported_before_its_owner_is_read_once(of: Resource, kind: Resource, name: str) -> None:
    body = child(of, kind, name)
    reference = {"apiVersion": of.api_version, "kind": of.kind, "name": "faq", "uid": "owner", "controller": True}
    body["metadata"]["ownerReferences"] = [reference]
    server, cache = Server(body), Cache()
    cache.put(kind, json.loads(json.dumps(body)))
    cache.put(of, owner(of))
    reader = ObjectReader(server, cache)  # type: ignore[arg-type]
    for _ in range(2):
        assert asyncio.run(reader.read_child(kind, owner(of), name)) == body
    assert server.read == [name]


@pytest.mark.parametrize("of", LABELS)
def test_pods_that_were_reported_before_their_owner_are_listed_once(of: Resource) -> None:
    bodies = [child(of, PODS, name) for name in ("a", "b")]
    server, cache, key = Server(*bodies), Cache(), Key(of, "team", "faq")
    for body in bodies:
        cache.put(PODS, json.loads(json.dumps(body)))
    cache.put(of, owner(of))
    reader = ObjectReader(server, cache)  # type: ignore[arg-type]
    for _ in range(2):
        asyncio.run(reader.complete_pods(key))
    assert cache.list_children(key, PODS) == bodies
    assert server.read == [f"app.kubernetes.io/managed-by=hone,{LABELS[of]}=faq"]
