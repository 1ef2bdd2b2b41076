"""Read the snapshot of an InferenceService: its children, the FineTuneJobs that it names, its pods and their answers.

In: the object. Out: an ObservedInferenceService. Next: inferenceservice/plan.py, which plans from it.
"""

from datetime import UTC, datetime

from hone_api.inferenceservices.spec import InferenceService
from hone_api.reasons import HoneError

from hone_operator.diagnosis import volumes
from hone_operator.diagnosis.gpus import find_largest_gpu
from hone_operator.engines.resolve import list_needed_claims, list_needed_jobs
from hone_operator.inferenceservice import autoscaling, rollouts
from hone_operator.inferenceservice.snapshot import ObservedInferenceService
from hone_operator.objects import child_names
from hone_operator.objects.parsing import parse_object
from hone_operator.objects.resources import (
    AUTOSCALERS,
    BUDGETS,
    CONFIGMAPS,
    DEPLOYMENTS,
    FINETUNEJOBS,
    INFERENCESERVICES,
    PODS,
    SERVICES,
    Key,
    Object,
    is_controlled_by,
)
from hone_operator.reconcile.pod_owners import select_engines
from hone_operator.snapshots.kind_reader import KindReader
from hone_operator.snapshots.nodes import needs_nodes


class InferenceServiceReader(KindReader):
    """Reads snapshots of InferenceServices."""

    async def read_snapshot(self, key: Key, owner: Object, now: datetime) -> ObservedInferenceService:
        """Return the snapshot. Of an object that breaks the contract, it has only the Deployment and its pods."""
        parsed = parse_object(InferenceService, owner)
        observed = ObservedInferenceService(owner, parsed, self._images)
        await self._objects.complete_pods(key)
        if isinstance(parsed, HoneError):
            observed.deployment = await self._objects.read_child(DEPLOYMENTS, owner, key.name)
            self._add_engines(key, observed)
            return observed
        await self._add_children(key, parsed, observed)
        await self._add_claims(key, parsed, observed)
        observed.upgrading_deployments = self.list_upgrading(key)
        self._add_engines(key, observed)
        await self._add_explanations(parsed, observed, now)
        return observed

    def list_upgrading(self, key: Key) -> list[Object]:
        """Return the Deployments of other services whose roll-out an upgrade began, and that has not ended."""
        found = rollouts.list_upgrade_rollouts(self._cache.list_objects(DEPLOYMENTS), datetime.now(UTC))
        own = (key.namespace, key.name)
        return [each for each in found if self._is_owned_by_service(each) and _get_namespace_and_name(each) != own]

    def _is_owned_by_service(self, deployment: Object) -> bool:
        """Return whether a service owns the Deployment: annotations of any other Deployment mean nothing."""
        service = self._cache.get(INFERENCESERVICES, *_get_namespace_and_name(deployment))
        return service is not None and is_controlled_by(deployment, service)

    async def _add_children(self, key: Key, service: InferenceService, observed: ObservedInferenceService) -> None:
        owner, objects, spec = observed.owner, self._objects, service.spec
        if autoscaling.get_max_replicas(spec) and self._cache.get(BUDGETS, key.namespace, key.name) is None:
            await objects.read(BUDGETS, key.namespace, key.name)
        if spec.autoscaling and self._cache.get(AUTOSCALERS, key.namespace, key.name) is None:
            await objects.read(AUTOSCALERS, key.namespace, key.name)
        observed.deployment = await objects.read_child_or_foreign(DEPLOYMENTS, owner, key.name)
        observed.service = await objects.read_child_or_foreign(SERVICES, owner, key.name)
        observed.budget = await objects.read_child(BUDGETS, owner, key.name)
        name = child_names.make_adapters_config_map_name(key.name)
        if spec.adapters or spec.model.fine_tune_job:
            observed.adapters_config_map = await objects.read_child_or_foreign(CONFIGMAPS, owner, name)
        elif (left := await objects.read_child(CONFIGMAPS, owner, name)) and is_controlled_by(left, owner):
            observed.adapters_config_map = left
        observed.jobs = {name: self._cache.get(FINETUNEJOBS, key.namespace, name) for name in list_needed_jobs(spec)}
        observed.autoscaler = await objects.read_child(AUTOSCALERS, owner, key.name)

    async def _add_claims(self, key: Key, service: InferenceService, observed: ObservedInferenceService) -> None:
        """Add the claims that decide where engines can run, and those that engines mount without need."""
        spec, needed = service.spec, list_needed_claims(service.spec, observed.jobs)
        if autoscaling.get_wanted_replicas(spec, observed.deployment) == 1:
            observed.cordoned_nodes = await self._nodes.read_cordoned()
        if autoscaling.get_max_replicas(spec) > 1 or observed.cordoned_nodes is not None:
            observed.claims = await self._objects.read_claims(key.namespace, needed)
        if needed and observed.deployment:
            mounted = set(volumes.list_claims(observed.deployment["spec"]["template"])) - set(needed)
            found = await self._objects.read_claims(key.namespace, sorted(mounted))
            stay = {claim["metadata"]["name"] for claim in found if not claim["metadata"].get("deletionTimestamp")}
            observed.leaving_claims = sorted(mounted - stay)

    def _add_engines(self, key: Key, observed: ObservedInferenceService) -> None:
        observed.pods = select_engines(observed.deployment, observed.owner, self._cache.list_children(key, PODS))
        observed.answers, observed.last_answer_at = (
            self._poller.get_answers(key),
            self._poller.get_last_answer_times(key),
        )

    async def _add_explanations(
        self, service: InferenceService, observed: ObservedInferenceService, now: datetime
    ) -> None:
        """Add nodes and warnings: what shows why engines wait."""
        resources = service.spec.resources
        if resources.gpus or any(needs_nodes(pod, {}, now) for pod in observed.pods):
            observed.cluster = await self._nodes.read_cluster()
        if resources.gpus and observed.cluster:
            selector = service.spec.pod.node_selector
            observed.gpu = find_largest_gpu(observed.cluster.nodes, resources.gpu_resource, selector)
        warning = await self._events.explain_pods(observed.pods, now)
        observed.warning = warning or _find_replica_failure(observed.deployment)
        observed.scaling = await self._events.find_scaling(observed.pods, now)


def _get_namespace_and_name(body: Object) -> tuple[str, str]:
    return body["metadata"]["namespace"], body["metadata"]["name"]


def _find_replica_failure(deployment: Object | None) -> str | None:
    """Return why the Deployment can't create pods, such as a quota."""
    conditions = ((deployment or {}).get("status") or {}).get("conditions") or []
    return next((c.get("message") for c in conditions if c["type"] == "ReplicaFailure" and c["status"] == "True"), None)
