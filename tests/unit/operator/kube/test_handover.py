"""The handover when the Lease of a Deployment gets another name: never two leaders at a time, and one in the end."""

import asyncio
import random
from copy import deepcopy
from typing import cast

import pytest
from hone_operator.handlers import Operator, Options
from hone_operator.kube import lease as lease_module
from hone_operator.kube.client import Api, ApiError
from hone_operator.kube.leader_election import LeaderElector
from hone_operator.kube.lease import LEASE_SECONDS, OLD_SECONDS, Use, find_deployment, judge_former_lease
from hone_operator.objects.resources import Object, Resource
from hone_operator.pods.pod_spec import Images

IDENTITY = "r-operator-6b5876c664-n549x_7"
RENAMINGS = [("hone-operator", "r-operator"), ("r-operator", "hone-operator")]


class Store:
    """The Leases of an API server, and the clock of all replicas."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        self.leases: dict[str, Object] = {}
        self.refuses: dict[str, int] = {}
        # The answer to a change of a Lease that does not exist.
        self.absent = 409
        self._version = 0
        monkeypatch.setattr(lease_module.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(lease_module, "_format_now", lambda: str(self.now))
        monkeypatch.setattr(lease_module, "_count_seconds_since", lambda moment: self.now - float(moment))

    async def get(self, _: Resource, namespace: str, name: str) -> Object | None:
        self._check(name)
        return deepcopy(self.leases.get(name))

    async def create(self, _: Resource, body: Object) -> Object:
        return self._store(body, is_new=True)

    async def replace(self, _: Resource, body: Object) -> Object:
        return self._store(body, is_new=False)

    async def close(self) -> None: ...

    def _store(self, body: Object, *, is_new: bool) -> Object:
        name = body["metadata"]["name"]
        self._check(name)
        found = self.leases.get(name)
        if found is None and not is_new:
            raise ApiError(self.absent, "not found")
        if (found is None) != is_new or (found and found["metadata"] != body["metadata"]):
            raise ApiError(409, "conflict")
        self._version += 1
        stored = deepcopy(body)
        stored["metadata"] = {"name": name, "namespace": "system", "resourceVersion": str(self._version)}
        self.leases[name] = stored
        return deepcopy(stored)

    def _check(self, name: str) -> None:
        if status := self.refuses.get(name):
            raise ApiError(status, "refused")


def replica(store: Store, name: str, former: tuple[str, ...], pod: str) -> LeaderElector:
    """Return a replica that takes steps only when the test calls for them."""
    found = LeaderElector(cast(Api, store), "system", name, pod, lambda _: None, former)
    found._task.cancel()
    return found


async def roll_out(store: Store, old: str, new: str, choose: random.Random, *, knows_new: bool) -> float:
    """Replace two replicas by two of another Lease name. Return the seconds after the last old one until one leads."""
    former = (new,) if knows_new else ()
    olds = [replica(store, old, former, f"r-operator-aaaa{number}-abcde_1") for number in range(2)]
    news: list[LeaderElector] = []
    all_gone = None
    for turn in range(60):
        store.now += 2
        living = [*olds, *news]
        if turn > 5 and turn % 2 and len(news) < 2:
            news.append(replica(store, new, (old,), f"r-operator-bbbb{len(news)}-abcde_1"))
        elif turn > 8 and olds and choose.random() < 0.4:
            gone = olds.pop(choose.randrange(len(olds)))
            living.remove(gone)
            if choose.random() < 0.6:
                await gone.stop()
            all_gone = None if olds else store.now
        choose.shuffle(living)
        for each in living:
            await each.try_acquire_or_renew()
            assert sum(one.is_leader for one in [*olds, *news]) <= 1
        if all_gone and len(news) == 2 and any(each.is_leader for each in news):
            return store.now - all_gone
    raise AssertionError("nobody leads")


@pytest.mark.parametrize(("old", "new"), RENAMINGS)
@pytest.mark.parametrize("seed", range(40))
def test_a_renamed_lease_never_has_two_leaders(monkeypatch: pytest.MonkeyPatch, old: str, new: str, seed: int) -> None:
    for knows_new in (False, True):
        seconds = asyncio.run(roll_out(Store(monkeypatch), old, new, random.Random(seed), knows_new=knows_new))
        assert seconds <= 2 * LEASE_SECONDS


@pytest.mark.parametrize(
    ("holder", "before", "unchanged", "age", "use"),
    [
        (None, Use.UNKNOWN, 0, 0, Use.NONE),
        ("r-operator-7c9-abcde_1", Use.NONE, 99, 99, Use.OURS),
        ("r-operator-operator-7c9-abcde_1", Use.UNKNOWN, 0, 0, Use.NONE),
        ("hone-operator-7c9-abcde_1", Use.OURS, 0, 0, Use.NONE),
        ("", Use.UNKNOWN, 0, 1, Use.UNKNOWN),
        ("", Use.OURS, 0, 1, Use.OURS),
        ("", Use.NONE, 0, 1, Use.NONE),
        ("", Use.OURS, LEASE_SECONDS, 20, Use.NONE),
        ("", Use.UNKNOWN, 0, OLD_SECONDS, Use.NONE),
    ],
)
def test_a_former_lease_counts_while_a_pod_of_this_deployment_may_lead_by_it(
    holder: str | None, before: Use, unchanged: float, age: float, use: Use
) -> None:
    assert (
        judge_former_lease(None if holder is None else {"holderIdentity": holder}, IDENTITY, before, unchanged, age)
        is use
    )


@pytest.mark.parametrize("length", [1, 30, 45, 46, 47, 48, 50, 54, 55])
def test_the_deployment_is_found_in_names_that_kubernetes_cuts(length: int) -> None:
    name = "x" * length
    pod = f"{name}-6b5876c664-"[:58] + "n549x"
    assert find_deployment(f"{pod}_6f0e") == name


def test_a_missing_former_lease_delays_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    async def check() -> None:
        found = replica(Store(monkeypatch), "r-operator", ("hone-operator",), IDENTITY)
        await found.try_acquire_or_renew()
        assert found.is_leader

    asyncio.run(check())


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_replica_without_a_right_to_its_lease_is_not_ready(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    async def check() -> None:
        store = Store(monkeypatch)
        operator = Operator(Options(Images("image", {}), [], "system", "r-operator", (), None))
        operator._elector = found = replica(store, "r-operator", (), IDENTITY)
        store.refuses["r-operator"] = status
        await found.try_acquire_or_renew()
        why = operator._explain_unreadiness()
        assert why is not None
        assert f"refuses Lease system/r-operator: {status}" in why
        store.refuses.clear()
        await found.try_acquire_or_renew()
        assert found.refusal is None

    asyncio.run(check())


def test_a_follower_is_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async def check() -> None:
        store = Store(monkeypatch)
        leader, follower = (replica(store, "r-operator", (), f"r-operator-7-{pod}_1") for pod in ("aaaaa", "bbbbb"))
        for each in (leader, follower):
            await each.try_acquire_or_renew()
        assert leader.is_leader
        assert not follower.is_leader
        assert follower.refusal is None

    asyncio.run(check())


def test_a_former_lease_that_is_forbidden_to_read_delays_nobody_and_is_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def check() -> None:
        store = Store(monkeypatch)
        store.refuses["hone-operator"] = 403
        found = replica(store, "r-operator", ("hone-operator",), IDENTITY)
        for _ in range(5):
            await found.try_acquire_or_renew()
            assert found.is_leader
        assert found.refusal is None

    asyncio.run(check())
    assert [record.getMessage() for record in caplog.records if "403" in record.getMessage()] == [
        "Lease system/hone-operator: 403: refused",
        "the API server refuses Lease system/hone-operator: 403: refused; a leader by this Lease would not be noticed",
    ]


@pytest.mark.parametrize("status", [404, 409])
def test_a_lease_that_was_deleted_is_named_and_created_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    """Delete the Lease while one replica leads. `status`: the API server's answer to the leader's next renewal."""

    async def check() -> None:
        store = Store(monkeypatch)
        store.absent = status
        lost: list[str] = []
        leader, follower = (replica(store, "r-operator", (), f"r-operator-7-{pod}_1") for pod in ("aaaaa", "bbbbb"))
        leader._on_lost = lost.append
        for each in (leader, follower):
            await each.try_acquire_or_renew()
        store.leases.clear()
        await leader.try_acquire_or_renew()
        assert not leader.is_leader
        assert leader.refusal is None
        ended = asyncio.create_task(asyncio.sleep(0))
        await ended
        leader._handle_end(ended)
        await follower.try_acquire_or_renew()
        assert follower.is_leader
        assert lost == [
            f"{leader.identity} no longer holds Lease system/r-operator: "
            "it was deleted, and the replica that is elected next creates it again"
        ]

    asyncio.run(check())
    assert [record.getMessage() for record in caplog.records] == [
        "Lease system/r-operator was deleted",
        "Lease system/r-operator was deleted: it is created again",
    ]
