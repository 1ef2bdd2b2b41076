"""Gather the snapshot that a plan is made from.

In: the key of a FineTuneJob or an InferenceService. Out: its children, pods, answers of pods, events and facts about
nodes. They come from the cache where a watch keeps it current, and from the API server otherwise. All reads are here,
so that the plans stay pure functions. Next: finetunejob/plan.py and inferenceservice/plan.py.
"""

import asyncio
import time
from datetime import UTC, datetime

from hone_api.artifacts.trainer_reports import ProgressReport
from hone_api.finetunejobs.spec import FineTuneJob
from hone_api.inferenceservices.spec import InferenceService
from hone_api.layout import FINETUNEJOB_LABEL, INFERENCESERVICE_LABEL, MANAGED_BY_LABEL, MANAGER
from hone_api.reasons import HoneError
from pydantic import ValidationError

from hone_operator.diagnosis import events, liveness, pod_state, volumes
from hone_operator.diagnosis.autoscalers import Scaling
from hone_operator.diagnosis.gpus import gpu_of
from hone_operator.diagnosis.nodes import ClusterFacts, by_claim, node_of
from hone_operator.engines.resolve import claims_of, names_of_jobs
from hone_operator.finetunejob import children, jobs
from hone_operator.finetunejob.remembered import Remembered
from hone_operator.finetunejob.snapshot import JobView, ObservedFineTuneJob, with_made
from hone_operator.inferenceservice import autoscaling, rollouts
from hone_operator.inferenceservice.snapshot import ObservedInferenceService
from hone_operator.kube.cache import Cache
from hone_operator.kube.client import Api, ApiError
from hone_operator.kube.pod_poller import Poller
from hone_operator.kube.retention import is_complete
from hone_operator.objects import child_names, timestamps
from hone_operator.objects.parsing import parse
from hone_operator.objects.resources import (
    AUTOSCALERS,
    BUDGETS,
    CLAIMS,
    CONFIGMAPS,
    DEPLOYMENTS,
    DEVICE_CLASSES,
    EVENTS,
    FINETUNEJOBS,
    INFERENCESERVICES,
    JOBS,
    NODES,
    PODS,
    SERVICES,
    Key,
    Object,
    Resource,
    is_controlled_by,
    is_terminal,
)
from hone_operator.pods import tuning
from hone_operator.pods.pod_spec import Images
from hone_operator.reconcile.conditions import Conditions
from hone_operator.reconcile.execution import refresh
from hone_operator.reconcile.plan import Create, Plan, name_of
from hone_operator.reconcile.pod_owners import engines_of, is_stray, pods_of, trainers_of

# Facts about nodes are used again for this many seconds, and for at least this many times as long as reading them took.
FACTS_SECONDS, FACTS_SHARE = 30.0, 20
CORDON_SECONDS = 5.0
# A list of nodes that was forbidden is tried again after this time.
FORBIDDEN_SECONDS = 600.0
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
DRA_DEVICE_CLASS = "gpu.amd.com"


class Observer:
    """Reads snapshots. Kinds that are not watched, and pods of a finished Job, are read from the API server."""

    def __init__(self, api: Api, cache: Cache, poller: Poller, images: Images) -> None:
        self.api = api
        self.cache = cache
        self.poller = poller
        self.images = images
        self._reading_facts = asyncio.Lock()
        self._facts: tuple[float, ClusterFacts | None] | None = None
        self.remembered = Remembered()
        self._cordoned: tuple[float, frozenset[str] | None] = (0.0, None)

    async def finetunejob(self, key: Key, owner: Object, now: datetime) -> ObservedFineTuneJob:
        parsed = parse(FineTuneJob, owner)
        images = self.images
        observed = ObservedFineTuneJob(owner, parsed, images.runtime, gpu_access=images.gpu_access, level=images.level)
        observed.settled = self.remembered.settled(key)
        space = key.namespace
        if isinstance(parsed, HoneError) and not is_terminal(owner):
            observed.job = await self._child(JOBS, owner, child_names.job_name(key.name))
            await self._complete_pods(key)
            self._see_pods(key, observed)
        if isinstance(parsed, HoneError):
            return observed
        if is_terminal(owner):
            self.forget(key)
            observed.job = await self._known(JOBS, space, child_names.job_name(key.name))
            observed.prepare_job = await self._known(JOBS, space, child_names.prepare_job_name(key.name))
            return observed
        await self._complete_pods(key)
        observed.job = await self._child(JOBS, owner, child_names.job_name(key.name))
        observed.prepare_job = await self._child(JOBS, owner, child_names.prepare_job_name(key.name))
        observed.config_map = await self._child(CONFIGMAPS, owner, child_names.config_map_name(key.name))
        if parsed.spec.resources.nodes > 1:
            observed.service = await self._child_or_foreign(SERVICES, owner, child_names.job_name(key.name))
        claim = children.output_claim(parsed)
        observed.claim = await self._known(CLAIMS, space, claim)
        if not parsed.spec.output.claim and self.remembered.may_be_foreign(key, observed):
            observed.claim = await self.api.get(CLAIMS, space, claim)
        self._see_pods(key, observed)
        if any(view.has_ended and not view.success and not view.failures for view in _views(observed)):
            async for pod in self.api.items(PODS, space, labelSelector=f"{FINETUNEJOB_LABEL}={key.name}"):
                self.cache.put(PODS, pod)
            self._see_pods(key, observed)
        observed.reports = self.reports(key)
        observed.heard = self.poller.heard(key)
        observed.held = self.remembered.note_held(key, observed, now)
        to_prepare = jobs.prepares_apart(parsed) and not Conditions(owner, now).holds("Prepared")
        wants_gpu = to_prepare and observed.prepare_job is None
        is_to_train = tuning.depends_on_nodes(parsed.spec.resources) and not to_prepare and observed.job is None
        pods = [*observed.strays, *(pod for view in _views(observed) for pod in view.pods)]
        if wants_gpu or is_to_train or any(self._needs_facts(pod, observed.heard, now) for pod in pods):
            observed.facts = await self.cluster_facts()
        if wants_gpu and observed.facts:
            resources, options = parsed.spec.resources, parsed.spec.pod
            observed.gpu = gpu_of(observed.facts.nodes, resources.gpu_resource, options.node_selector)
        observed.warning = await self._warning(observed, now)
        observed.scaling = await self._scaling(pods, now)
        if observed.training.is_suspended and not parsed.spec.suspend:
            observed.queue = await self._of_queue(observed.job)
        return observed

    def reports(self, key: Key) -> dict[str, ProgressReport]:
        """Return the last report of each trainer, by pod uid."""
        return {uid: r for uid, a in self.poller.answers(key).items() if (r := _progress_report(a))}

    def trainers(self, key: Key) -> list[Object]:
        """Return all pods that train or trained for this very object, not for an earlier one of its name."""
        owner = self.cache.get(key.resource, key.namespace, key.name) or {}
        since = (owner.get("metadata") or {}).get("creationTimestamp", "")
        return trainers_of(child_names.job_name(key.name), self.cache.children(key, PODS), since)

    async def inferenceservice(self, key: Key, owner: Object, now: datetime) -> ObservedInferenceService:
        parsed = parse(InferenceService, owner)
        observed = ObservedInferenceService(owner, parsed, self.images)
        await self._complete_pods(key)
        if isinstance(parsed, HoneError):
            observed.deployment = await self._child(DEPLOYMENTS, owner, key.name)
            self._see_engines(key, observed)
            return observed
        for resource in (
            *([BUDGETS] if autoscaling.most(parsed.spec) else []),
            *([AUTOSCALERS] if parsed.spec.autoscaling else []),
        ):
            if self.cache.get(resource, key.namespace, key.name) is None:
                await self._read(resource, key.namespace, key.name)
        observed.deployment = await self._child_or_foreign(DEPLOYMENTS, owner, key.name)
        observed.service = await self._child_or_foreign(SERVICES, owner, key.name)
        observed.budget = await self._child(BUDGETS, owner, key.name)
        name = child_names.adapters_config_map_name(key.name)
        if parsed.spec.adapters or parsed.spec.model.fine_tune_job:
            observed.adapters = await self._child_or_foreign(CONFIGMAPS, owner, name)
        elif (left := await self._child(CONFIGMAPS, owner, name)) and is_controlled_by(left, owner):
            observed.adapters = left
        observed.jobs = {name: self.cache.get(FINETUNEJOBS, key.namespace, name) for name in names_of_jobs(parsed.spec)}
        observed.autoscaler = await self._child(AUTOSCALERS, owner, key.name)
        needed = claims_of(parsed.spec, observed.jobs)
        if autoscaling.wanted(parsed.spec, observed.deployment) == 1:
            observed.cordoned = await self.cordoned()
        if autoscaling.most(parsed.spec) > 1 or observed.cordoned is not None:
            observed.claims = await self._claims(key.namespace, needed)
        if needed and observed.deployment:
            mounted = set(volumes.claims_of(observed.deployment["spec"]["template"])) - set(needed)
            there = await self._claims(key.namespace, sorted(mounted))
            stay = {claim["metadata"]["name"] for claim in there if not claim["metadata"].get("deletionTimestamp")}
            observed.leaving = sorted(mounted - stay)
        observed.upgrading = self.upgrading(key)
        self._see_engines(key, observed)
        resources, options = parsed.spec.resources, parsed.spec.pod
        if resources.gpus or any(self._needs_facts(pod, {}, now) for pod in observed.pods):
            observed.facts = await self.cluster_facts()
        if resources.gpus and observed.facts:
            observed.gpu = gpu_of(observed.facts.nodes, resources.gpu_resource, options.node_selector)
        observed.warning = await self._of_pods(observed.pods, now) or _replica_failure(observed.deployment)
        observed.scaling = await self._scaling(observed.pods, now)
        return observed

    def forget(self, key: Key) -> None:
        """Forget an object that is gone, or has its result."""
        self.remembered.forget(key)

    def see_made(self, observed: ObservedFineTuneJob, plan: Plan) -> ObservedFineTuneJob:
        """Return the snapshot as it is after the children of a plan were created."""
        made = [action for action in plan.actions if isinstance(action, Create)]
        names = [(action.resource, action.body["metadata"]["namespace"], name_of(action)) for action in made]
        return with_made(observed, [child for name in names if (child := self.cache.get(*name))])

    def upgrading(self, key: Key) -> list[Object]:
        """Return the Deployments of other services whose roll-out an upgrade began, and that has not ended."""
        found = rollouts.begun_by_upgrade(self.cache.all(DEPLOYMENTS), datetime.now(UTC))
        own = (key.namespace, key.name)
        return [each for each in found if self._is_of_a_service(each) and _place(each) != own]

    def _is_of_a_service(self, deployment: Object) -> bool:
        """Return whether a service owns the Deployment: annotations of any other Deployment mean nothing."""
        service = self.cache.get(INFERENCESERVICES, *_place(deployment))
        return service is not None and is_controlled_by(deployment, service)

    async def _claims(self, namespace: str, names: list[str]) -> list[Object]:
        """Return the claims that exist, from the cache where it has them: access modes never change."""
        return [
            claim
            for name in names
            if (claim := await self._known(CLAIMS, namespace, name) or await self.api.get(CLAIMS, namespace, name))
        ]

    async def _known(self, resource: Resource, namespace: str, name: str) -> Object | None:
        """Return an object from the cache; read it where the cache has only a part of it."""
        cached = self.cache.get(resource, namespace, name)
        return cached if cached is None or is_complete(cached) else await self._read(resource, namespace, name)

    async def _complete_pods(self, key: Key) -> None:
        """Read the pods of an owner that appeared after its pods, which the cache keeps only in part."""
        if not self.cache.lacks_pods(key):
            return
        label = FINETUNEJOB_LABEL if key.resource == FINETUNEJOBS else INFERENCESERVICE_LABEL
        selector = f"{MANAGED_BY_LABEL}={MANAGER},{label}={key.name}"
        async for pod in self.api.items(PODS, key.namespace, labelSelector=selector):
            self.cache.put(PODS, pod)
        self.cache.has_pods(key)

    async def _child(self, resource: Resource, owner: Object, name: str) -> Object | None:
        """Return a child from the cache; read it where another object owns it, since watches may not report that."""
        cached = self.cache.get(resource, owner["metadata"]["namespace"], name)
        # Of a finished FineTuneJob's Job the cache has only the metadata; the FineTuneJob may have lost its status
        # since.
        is_whole = cached is None or (is_complete(cached) and (resource != JOBS or "spec" in cached))
        if cached is None or (is_controlled_by(cached, owner) and is_whole):
            return cached
        return await self._read(resource, owner["metadata"]["namespace"], name)

    async def _child_or_foreign(self, resource: Resource, owner: Object, name: str) -> Object | None:
        """Return a child that may be applied; read it where the cache lacks it: apply would take over another's."""
        found = await self._child(resource, owner, name)
        return found or await self._read(resource, owner["metadata"]["namespace"], name)

    async def _read(self, resource: Resource, namespace: str, name: str) -> Object | None:
        """Read an object from the API server into the cache."""
        return await refresh(self.api, self.cache, resource, namespace, name)

    async def cordoned(self) -> frozenset[str] | None:
        """Return the cordoned nodes, read at most every CORDON_SECONDS; None where listing nodes is forbidden."""
        until, known = self._cordoned
        if time.monotonic() < until:
            return known
        try:
            nodes = self.api.items(NODES, "", fieldSelector="spec.unschedulable=true")
            found = frozenset([node["metadata"]["name"] async for node in nodes])
        except ApiError as error:
            if error.status != 403:
                raise
            self._cordoned = (time.monotonic() + FORBIDDEN_SECONDS, None)
        else:
            self._cordoned = (time.monotonic() + CORDON_SECONDS, found)
        return self._cordoned[1]

    async def cluster_facts(self) -> ClusterFacts | None:
        """Return facts about the nodes, read at most every FACTS_SECONDS; None where listing nodes is forbidden."""
        async with self._reading_facts:  # by one worker for all: thousands of nodes take memory
            if self._facts is None or time.monotonic() > self._facts[0]:
                begun = time.monotonic()
                found = await self._read_facts()
                now = time.monotonic()
                self._facts = (now + max(FACTS_SECONDS, (now - begun) * FACTS_SHARE), found)
            return self._facts[1]

    async def _read_facts(self) -> ClusterFacts | None:
        try:
            nodes = tuple([node_of(node) async for node in self.api.items(NODES, "")])
        except ApiError as error:
            if error.status != 403:
                raise
            return None
        try:
            found = await self.api.get(DEVICE_CLASSES, "", DRA_DEVICE_CLASS)
        except ApiError:  # a cluster without the API, or older than it
            found = None
        return ClusterFacts(nodes, by_claim(found))

    def _see_engines(self, key: Key, observed: ObservedInferenceService) -> None:
        observed.pods = engines_of(observed.deployment, observed.owner, self.cache.children(key, PODS))
        observed.answers, observed.heard = self.poller.answers(key), self.poller.heard(key)

    def _see_pods(self, key: Key, observed: ObservedFineTuneJob) -> None:
        """Put the pods of these very Jobs into the snapshot; pods of earlier Jobs may still be at work (`strays`)."""
        pods = self.cache.children(key, PODS)
        observed.pods, observed.prepare_pods = pods_of(observed.job, pods), pods_of(observed.prepare_job, pods)
        known = [*observed.pods, *observed.prepare_pods]
        makers = (child_names.job_name(key.name), child_names.prepare_job_name(key.name))
        observed.strays = [pod for pod in pods if pod not in known and is_stray(pod, makers)]
        observed.trainers = self.trainers(key)

    @staticmethod
    def _needs_facts(pod: Object, heard: dict[str, datetime], now: datetime) -> bool:
        uid = pod["metadata"]["uid"]
        return pod_state.is_unschedulable(pod) or liveness.is_suspect(pod, heard.get(uid), now, liveness.PATIENCE)

    async def _warning(self, observed: ObservedFineTuneJob, now: datetime) -> str | None:
        """Return what the statuses of pods and Jobs don't show: events about them, and the state of their claims."""
        for view in _views(observed):
            if words := await self._of_pods(view.pods, now):
                return words
            if view.job is None or view.has_ended or view.active or view.success:
                continue
            since = timestamps.parse_time(view.job["metadata"]["creationTimestamp"])
            is_late = timestamps.has_lasted(since, pod_state.STARTING_PATIENCE, now)
            if is_late and (words := await self._warning_about(view.job)):
                return words
        return None

    async def _of_pods(self, pods: list[Object], now: datetime) -> str | None:
        """Return why the first pod that takes too long to start does not start."""
        for pod in pods:
            if pod_state.is_stuck(pod, now):
                return await self._warning_about(pod)
            if pod_state.waits_for_volumes(pod, now):
                return await self._of_claims(pod)
        return None

    async def _scaling(self, pods: list[Object], now: datetime) -> Scaling | None:
        """Return what an autoscaler reports about the newest pod that no node takes."""
        waiting = pod_state.newest(pod for pod in pods if pod_state.waits_for_node(pod, now))
        return events.scaling_of(await self._events(waiting)) if waiting else None

    async def _of_claims(self, pod: Object) -> str | None:
        space = pod["metadata"]["namespace"]
        found = []
        for name in volumes.claims_of(pod):
            claim = await self.api.get(CLAIMS, space, name)
            event = events.newest(await self._events(claim)) if claim else None
            found.append(volumes.unbound(name, claim, event.get("message") if event else None))
        return " ".join(words for words in found if words) or None

    async def _of_queue(self, job: Object | None) -> str | None:
        """Return why Kueue does not admit the Job, from the events: the operator has no right to read the Workload."""
        if job is None or QUEUE_LABEL not in (job["metadata"].get("labels") or {}):
            return None
        selector = "involvedObject.kind=Workload,type=Warning"
        found = await events.read(self.api.items(EVENTS, job["metadata"]["namespace"], fieldSelector=selector))
        return events.of_workload(found, job["metadata"]["name"])

    async def _warning_about(self, about: Object) -> str | None:
        return events.standing_warning(await self._events(about))

    async def _events(self, about: Object) -> list[Object]:
        selector = f"involvedObject.uid={about['metadata']['uid']}"
        return await events.read(self.api.items(EVENTS, about["metadata"]["namespace"], fieldSelector=selector))


def _place(body: Object) -> tuple[str, str]:
    return body["metadata"]["namespace"], body["metadata"]["name"]


def _replica_failure(deployment: Object | None) -> str | None:
    """Return why the Deployment can't create pods, such as a quota."""
    conditions = ((deployment or {}).get("status") or {}).get("conditions") or []
    return next((c.get("message") for c in conditions if c["type"] == "ReplicaFailure" and c["status"] == "True"), None)


def _progress_report(answer: object) -> ProgressReport | None:
    try:
        return ProgressReport.model_validate(answer)
    except ValidationError:
        return None


def _views(observed: ObservedFineTuneJob) -> tuple[JobView, JobView]:
    return observed.training, observed.preparing
