"""The passes of an owner with very many pods read a bounded number of pods a second, however many events there are."""

import asyncio
import random
from typing import cast

import pytest
from hone_api.layout import FINETUNEJOB_LABEL
from hone_operator.controller import Controller
from hone_operator.kube.cache import MANY_PODS, PODS_A_SECOND
from hone_operator.kube.client import Api
from hone_operator.objects.resources import FINETUNEJOBS, PODS, Key, Object
from hone_operator.observability.metrics import Metrics
from observed import IMAGES

OWNER = Key(FINETUNEJOBS, "team", "faq")


def make_pod(number: int, version: int) -> Object:
    metadata = {
        "name": f"pod-{number}",
        "namespace": OWNER.namespace,
        "uid": f"uid-{number}",
        "resourceVersion": str(version),
        "labels": {FINETUNEJOB_LABEL: OWNER.name},
    }
    return {"metadata": metadata, "status": {"phase": "Pending"}}


class Simulation:
    """A controller without workers, whose clock the test sets."""

    def __init__(self, pods: int) -> None:
        self.controller = Controller(cast(Api, None), IMAGES, [], Metrics(), lambda: True)
        self.passes: list[float] = []
        self.now = 0.0
        asyncio.get_running_loop().time = lambda: self.now  # type: ignore[method-assign]
        owner = {"name": OWNER.name, "namespace": OWNER.namespace, "uid": "owner", "resourceVersion": "1"}
        self.controller.cache.put(FINETUNEJOBS, {"metadata": owner, "spec": {}})
        self._version = 1
        for number in range(pods):
            self.change(number)
        self.controller.handlers.is_started = True

    def change(self, number: int) -> None:
        self._version += 1
        self.controller.handlers.on_upsert(PODS, make_pod(number, self._version))

    async def work_until(self, moment: float) -> None:
        """Do the passes that are due by then."""
        queue = self.controller.queue
        timer = queue._timers.get(OWNER)
        if timer and timer.when() <= moment:
            self.now = timer.when()
            timer.cancel()
            queue._add_due(OWNER)
        if OWNER in queue._dirty:
            assert await queue.get() == OWNER
            self.passes.append(self.now)
            queue.done(OWNER)
        self.now = moment


@pytest.mark.parametrize("seed", range(8))
def test_events_of_many_pods_share_passes(seed: int) -> None:
    choose = random.Random(seed)
    pods, seconds = choose.randrange(MANY_PODS + 1, 3000), choose.uniform(1, 60)
    moments = sorted(choose.uniform(0, seconds) for _ in range(choose.randrange(1, 500)))

    async def check() -> list[float]:
        simulation = Simulation(pods)
        for moment in moments:
            await simulation.work_until(moment)
            simulation.change(choose.randrange(pods))
        await simulation.work_until(moments[-1] + pods / PODS_A_SECOND)
        await simulation.controller.poller.close()
        return simulation.passes

    passes = asyncio.run(check())
    assert passes[-1] >= moments[-1]
    assert len(passes) * pods <= PODS_A_SECOND * (seconds + pods / PODS_A_SECOND)


def test_each_event_of_a_usual_owner_has_a_pass_at_once() -> None:
    async def check() -> list[float]:
        simulation = Simulation(MANY_PODS)
        for moment in range(20):
            await simulation.work_until(moment)
            simulation.change(moment)
            await simulation.work_until(moment)
        await simulation.controller.poller.close()
        return simulation.passes

    assert asyncio.run(check()) == list(range(20))
