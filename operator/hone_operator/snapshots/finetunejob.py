"""Read the snapshot of a FineTuneJob: its children, its pods, their reports, and what explains why they wait.

In: the object. Out: an ObservedFineTuneJob. Next: finetunejob/plan.py, which plans from it.
"""

from dataclasses import dataclass
from datetime import datetime

from hone_api.artifacts.trainer_reports import ProgressReport
from hone_api.finetunejobs.spec import FineTuneJob
from hone_api.layout import FINETUNEJOB_LABEL
from hone_api.reasons import HoneError
from pydantic import ValidationError

from hone_operator.diagnosis import pod_state
from hone_operator.diagnosis.gpus import find_largest_gpu
from hone_operator.finetunejob import children, jobs
from hone_operator.finetunejob.job_memory import JobMemory
from hone_operator.finetunejob.snapshot import JobView, ObservedFineTuneJob
from hone_operator.objects import child_names, timestamps
from hone_operator.objects.parsing import parse_object
from hone_operator.objects.resources import (
    CLAIMS,
    CONFIGMAPS,
    JOBS,
    PODS,
    SERVICES,
    Key,
    Object,
    awaits_push,
    is_terminal,
)
from hone_operator.pods import tuning
from hone_operator.reconcile.conditions import Conditions
from hone_operator.reconcile.pod_owners import is_stale_pod, select_pods, select_trainers
from hone_operator.snapshots.kind_reader import KindReader
from hone_operator.snapshots.nodes import needs_nodes


@dataclass(frozen=True)
class FineTuneJobReader(KindReader):
    """Reads snapshots of FineTuneJobs. Pods of a finished Job are read from the API server."""

    _memory: JobMemory

    async def read_snapshot(self, key: Key, owner: Object, now: datetime) -> ObservedFineTuneJob:
        """Return the snapshot. Of an object that breaks the contract or has ended, it has only what the plan needs."""
        parsed, images = parse_object(FineTuneJob, owner), self._images
        observed = ObservedFineTuneJob(
            owner, parsed, images.runtime, gpu_access=images.gpu_access, pod_level=images.level
        )
        observed.settled_digest = self._memory.get_settled_digest(key)
        if isinstance(parsed, HoneError):
            if not is_terminal(owner):
                observed.job = await self._objects.read_child(JOBS, owner, child_names.make_job_name(key.name))
                await self._objects.complete_pods(key)
                self._add_pods(key, observed)
        elif is_terminal(owner):
            self._memory.forget(key)
            observed.job = await self._objects.read_cached(JOBS, key.namespace, child_names.make_job_name(key.name))
            observed.prepare_job = await self._objects.read_cached(
                JOBS, key.namespace, child_names.make_prepare_job_name(key.name)
            )
            await self._add_push(key, observed, now)
        else:
            await self._add_children(key, parsed, observed)
            await self._add_explanations(key, parsed, observed, now)
        return observed

    def get_reports(self, key: Key) -> dict[str, ProgressReport]:
        """Return the last report of each trainer, by pod uid."""
        return {uid: r for uid, a in self._poller.get_answers(key).items() if (r := _parse_report(a))}

    def list_trainer_pods(self, key: Key) -> list[Object]:
        """Return all pods that train or trained for this very object, not for an earlier one of its name."""
        owner = self._cache.get(key.resource, key.namespace, key.name) or {}
        since = (owner.get("metadata") or {}).get("creationTimestamp", "")
        return select_trainers(child_names.make_job_name(key.name), self._cache.list_children(key, PODS), since)

    async def _add_children(self, key: Key, job: FineTuneJob, observed: ObservedFineTuneJob) -> None:
        owner, objects = observed.owner, self._objects
        await objects.complete_pods(key)
        observed.job = await objects.read_child(JOBS, owner, child_names.make_job_name(key.name))
        observed.prepare_job = await objects.read_child(JOBS, owner, child_names.make_prepare_job_name(key.name))
        observed.config_map = await objects.read_child(CONFIGMAPS, owner, child_names.make_config_map_name(key.name))
        if job.spec.resources.nodes > 1:
            observed.service = await objects.read_child_or_foreign(SERVICES, owner, child_names.make_job_name(key.name))
        claim = children.get_output_claim(job)
        observed.claim = await objects.read_cached(CLAIMS, key.namespace, claim)
        if not job.spec.output.claim and self._memory.may_claim_be_foreign(key, observed):
            observed.claim = await self._api.get(CLAIMS, key.namespace, claim)
        self._add_pods(key, observed)
        if any(view.has_ended and not view.success_state and not view.failures for view in _list_views(observed)):
            await objects.read_pods(key, f"{FINETUNEJOB_LABEL}={key.name}")
            self._add_pods(key, observed)

    async def _add_push(self, key: Key, observed: ObservedFineTuneJob, now: datetime) -> None:
        """Add the pushing Job; while the artifact is not pushed, with its pods and what explains why they wait."""
        owner, objects, name = observed.owner, self._objects, child_names.make_push_job_name(key.name)
        if not awaits_push(owner):
            observed.push_job = await objects.read_cached(JOBS, key.namespace, name)
            return
        observed.push_job = await objects.read_child(JOBS, owner, name)
        observed.config_map = await objects.read_child(CONFIGMAPS, owner, child_names.make_config_map_name(key.name))
        await objects.complete_pods(key)
        observed.push_pods = select_pods(observed.push_job, self._cache.list_children(key, PODS))
        view = observed.pushing
        if view.has_ended and not view.success_state and not view.failures:
            await objects.read_pods(key, f"{FINETUNEJOB_LABEL}={key.name}")
            observed.push_pods = select_pods(observed.push_job, self._cache.list_children(key, PODS))
        observed.warning = await self._events.explain_pods(observed.push_pods, now)
        observed.scaling = await self._events.find_scaling(observed.push_pods, now)

    def _add_pods(self, key: Key, observed: ObservedFineTuneJob) -> None:
        """Put the pods of these very Jobs into the snapshot; pods of earlier Jobs may still work (`stale_pods`)."""
        pods = self._cache.list_children(key, PODS)
        observed.pods, observed.prepare_pods = select_pods(observed.job, pods), select_pods(observed.prepare_job, pods)
        known = {pod["metadata"]["uid"] for pod in (*observed.pods, *observed.prepare_pods)}
        makers = (child_names.make_job_name(key.name), child_names.make_prepare_job_name(key.name))
        observed.stale_pods = [pod for pod in pods if pod["metadata"]["uid"] not in known and is_stale_pod(pod, makers)]
        observed.trainer_pods = self.list_trainer_pods(key)

    async def _add_explanations(self, key: Key, job: FineTuneJob, observed: ObservedFineTuneJob, now: datetime) -> None:
        """Add reports, nodes and warnings: what shows how far the pods are, or why they wait."""
        observed.reports = self.get_reports(key)
        observed.last_answer_at = self._poller.get_last_answer_times(key)
        observed.held_since = self._memory.update_held(key, observed, now)
        resources = job.spec.resources
        is_to_prepare = jobs.has_prepare_job(job) and not Conditions(observed.owner, now).is_true("Prepared")
        needs_gpu = is_to_prepare and resources.gpus > 0 and observed.prepare_job is None
        is_to_train = tuning.depends_on_nodes(resources) and not is_to_prepare and observed.job is None
        pods = [*observed.stale_pods, *(pod for view in _list_views(observed) for pod in view.pods)]
        if needs_gpu or is_to_train or any(needs_nodes(pod, observed.last_answer_at, now) for pod in pods):
            observed.cluster = await self._nodes.read_cluster()
        if needs_gpu and observed.cluster:
            selector = job.spec.pod.node_selector
            observed.gpu = find_largest_gpu(observed.cluster.nodes, resources.gpu_resource, selector)
        observed.warning = await self._find_warning(observed, now)
        observed.scaling = await self._events.find_scaling(pods, now)
        if observed.training.is_suspended and not job.spec.suspend:
            observed.queue_message = await self._events.explain_queue(observed.job)

    async def _find_warning(self, observed: ObservedFineTuneJob, now: datetime) -> str | None:
        """Return what the statuses of pods and Jobs don't show: events about them, and the state of their claims."""
        for view in _list_views(observed):
            if text := await self._events.explain_pods(view.pods, now):
                return text
            if view.job is None or view.has_ended or view.active_pods or view.success_state:
                continue
            since = timestamps.parse_time(view.job["metadata"]["creationTimestamp"])
            is_late = timestamps.has_lasted(since, pod_state.STARTING_GRACE, now)
            if is_late and (text := await self._events.find_warning(view.job)):
                return text
        return None


def _parse_report(answer: object) -> ProgressReport | None:
    try:
        return ProgressReport.model_validate(answer)
    except ValidationError:
        return None


def _list_views(observed: ObservedFineTuneJob) -> tuple[JobView, JobView]:
    return observed.training, observed.preparing
