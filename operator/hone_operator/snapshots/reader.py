"""Gather the snapshot that a plan is made from.

In: the key of a FineTuneJob or an InferenceService. Out: its children, pods, answers of pods, events and nodes. They
come from the cache where a watch keeps it current, and from the API server otherwise. All reads are in this package, so
that the plans stay pure functions. Next: finetunejob/plan.py and inferenceservice/plan.py.
"""

from datetime import datetime

from hone_api.artifacts.trainer_reports import ProgressReport

from hone_operator.finetunejob.job_memory import JobMemory
from hone_operator.finetunejob.snapshot import ObservedFineTuneJob, add_created
from hone_operator.inferenceservice.snapshot import ObservedInferenceService
from hone_operator.kube.cache import Cache
from hone_operator.kube.client import Api
from hone_operator.kube.pod_poller import Poller
from hone_operator.objects.resources import Key, Object
from hone_operator.pods.pod_spec import Images
from hone_operator.reconcile.plan import Create, Plan, get_target_name
from hone_operator.snapshots.events import EventReader
from hone_operator.snapshots.finetunejob import FineTuneJobReader
from hone_operator.snapshots.inferenceservice import InferenceServiceReader
from hone_operator.snapshots.nodes import NodeReader
from hone_operator.snapshots.objects import ObjectReader


class SnapshotReader:
    """Reads snapshots of both kinds for the controller, and has the memory of FineTuneJobs between two passes."""

    def __init__(self, api: Api, cache: Cache, poller: Poller, images: Images) -> None:
        self.job_memory = JobMemory()
        self._cache = cache
        self._nodes = NodeReader(api)
        parts = (api, cache, poller, images, ObjectReader(api, cache), self._nodes, EventReader(api))
        self._finetunejobs = FineTuneJobReader(*parts, self.job_memory)
        self._inferenceservices = InferenceServiceReader(*parts)

    async def read_finetunejob(self, key: Key, owner: Object, now: datetime) -> ObservedFineTuneJob:
        """Return the snapshot of a FineTuneJob."""
        return await self._finetunejobs.read_snapshot(key, owner, now)

    async def read_inferenceservice(self, key: Key, owner: Object, now: datetime) -> ObservedInferenceService:
        """Return the snapshot of an InferenceService."""
        return await self._inferenceservices.read_snapshot(key, owner, now)

    async def read_cordoned_nodes(self) -> frozenset[str] | None:
        """Return the cordoned nodes; None where listing nodes is forbidden."""
        return await self._nodes.read_cordoned()

    def get_reports(self, key: Key) -> dict[str, ProgressReport]:
        """Return the last report of each trainer, by pod uid."""
        return self._finetunejobs.get_reports(key)

    def list_trainer_pods(self, key: Key) -> list[Object]:
        """Return all pods that train or trained for this very FineTuneJob."""
        return self._finetunejobs.list_trainer_pods(key)

    def list_upgrading(self, key: Key) -> list[Object]:
        """Return the Deployments of other services whose roll-out an upgrade began, and that has not ended."""
        return self._inferenceservices.list_upgrading(key)

    def add_created(self, observed: ObservedFineTuneJob, plan: Plan) -> ObservedFineTuneJob:
        """Return the snapshot as it is after the children of a plan were created."""
        made = [action for action in plan.actions if isinstance(action, Create)]
        names = [(action.resource, action.body["metadata"]["namespace"], get_target_name(action)) for action in made]
        return add_created(observed, [child for name in names if (child := self._cache.get(*name))])

    def forget(self, key: Key) -> None:
        """Forget an object that is gone, or has its result."""
        self.job_memory.forget(key)
