"""The operator's metrics, with the names of controller-runtime, its work queue and client-go where these have one."""

import time
from collections import Counter as Count
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from hone_operator.objects.resources import TERMINAL_STAGES, Object

QUEUE_NAME = "hone"
# The default name of the Lease.
DEFAULT_LEASE_NAME = "hone-operator"
# Buckets in seconds for actions of the operator.
RECONCILE_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
# Buckets in seconds for stages of jobs.
STAGE_BUCKETS = (1, 5, 15, 30, 60, 300, 900, 1800, 3600, 7200, 14400, 43200, 86400, 259200, 604800)


class Metrics:
    """All metrics of one process, in a registry of their own."""

    def __init__(self, lease: str = DEFAULT_LEASE_NAME) -> None:
        self.registry = registry = CollectorRegistry()
        controller, queue = ["controller"], ["name"]
        self.reconciles = Counter(
            "controller_runtime_reconcile", "Passes over an object", ["controller", "result"], registry=registry
        )
        self.reconcile_errors = Counter(
            "controller_runtime_reconcile_errors", "Passes that failed", controller, registry=registry
        )
        self.reconcile_time = Histogram(
            "controller_runtime_reconcile_time_seconds",
            "Length of a pass",
            controller,
            buckets=RECONCILE_BUCKETS,
            registry=registry,
        )
        self.queue_adds = Counter("workqueue_adds", "Keys that were queued", queue, registry=registry).labels(
            QUEUE_NAME
        )
        self.queue_retries = Counter(
            "workqueue_retries", "Keys queued again after a failure", queue, registry=registry
        ).labels(QUEUE_NAME)
        self.queue_wait = Histogram(
            "workqueue_queue_duration_seconds",
            "How long a key waits for a worker",
            queue,
            buckets=RECONCILE_BUCKETS,
            registry=registry,
        ).labels(QUEUE_NAME)
        self.queue_work = Histogram(
            "workqueue_work_duration_seconds",
            "How long a worker has a key",
            queue,
            buckets=RECONCILE_BUCKETS,
            registry=registry,
        ).labels(QUEUE_NAME)
        self._queue_depth = Gauge("workqueue_depth", "Keys that wait for a worker", queue, registry=registry).labels(
            QUEUE_NAME
        )
        self._queue_longest = Gauge(
            "workqueue_longest_running_processor_seconds",
            "How long the oldest pass under way has lasted",
            queue,
            registry=registry,
        ).labels(QUEUE_NAME)
        self._queue_unfinished = Gauge(
            "workqueue_unfinished_work_seconds",
            "The lengths of all passes under way, added up",
            queue,
            registry=registry,
        ).labels(QUEUE_NAME)
        self.requests = Counter(
            "rest_client_requests", "Requests to the API server", ["code", "method", "resource"], registry=registry
        )
        self._leads = Gauge(
            "leader_election_master_status", "1 while this replica leads", ["name"], registry=registry
        ).labels(lease)
        self._lease_refused = Gauge(
            "hone_lease_refused", "1 while the API server lets this replica use no Lease", ["name"], registry=registry
        ).labels(lease)

    def watch_queue(self, depth: Callable[[], int], begun: Callable[[], Iterable[float]]) -> None:
        """Report a work queue: how many keys wait, and when (monotonic) the passes under way began."""
        self._queue_depth.set_function(depth)
        self._queue_longest.set_function(lambda: max(_compute_ages(begun()), default=0.0))
        self._queue_unfinished.set_function(lambda: sum(_compute_ages(begun())))

    def watch_lease(self, is_refused: Callable[[], bool]) -> None:
        """Report whether the API server refuses the Lease."""
        self._lease_refused.set_function(is_refused)

    def watch_coverage(self, unreadable: Callable[[], Iterable[tuple[str, str, str]]]) -> None:
        """Report the lists that the API server refuses."""
        self.registry.register(_RefusedListCollector(unreadable))

    def watch_objects(
        self,
        leads: Callable[[], bool],
        jobs: Callable[[], "Iterable[JobState]"],
        services: Callable[[], Iterable[Object]],
    ) -> None:
        """Count objects at each scrape. Followers report none, so that sums over the replicas are right."""
        self._leads.set_function(leads)
        self.registry.register(_ObjectCollector(leads, jobs, services))

    def render_exposition(self) -> bytes:
        return generate_latest(self.registry)


class JobState(NamedTuple):
    """The counted state of a FineTuneJob. `since`: when its stage began, by the monotonic clock; None if unknown."""

    gpu_seconds: float
    stage: str
    reason: str
    since: float | None


class JobMeter:
    """Counters of the GPU time of FineTuneJobs and of the time in each stage, from their statuses.

    A sum over the objects would fall when one is deleted, and rise by all of the past at each restart. So only
    increases that this process observes are counted, from the first version of a job that it sees.
    """

    def __init__(self, metrics: Metrics, leads: Callable[[], bool]) -> None:
        self._leads = leads
        self._known: dict[str, JobState] = {}
        self._gpu_seconds = Counter(
            "hone_finetunejob_gpu_seconds", "GPU time of trainers", ["namespace"], registry=metrics.registry
        )
        self._stage_seconds = Histogram(
            "hone_finetunejob_stage_seconds",
            "How long jobs were in a stage that they left",
            ["stage"],
            buckets=STAGE_BUCKETS,
            registry=metrics.registry,
        )

    def on_upsert(self, job: Object) -> None:
        """Count what a newer version of a job adds to the last one."""
        status = job.get("status") or {}
        uid, now = job["metadata"]["uid"], time.monotonic()
        spent, (stage, reason) = _parse_number(status.get("gpuSeconds")), _read_stage_and_reason(status)
        if (before := self._known.get(uid)) is None:
            # When the stage of a job began is unknown if the first observed version already has one.
            self._known[uid] = JobState(spent, stage, reason, None if "stage" in status else now)
            return
        since = before.since if stage == before.stage else now
        self._known[uid] = JobState(max(spent, before.gpu_seconds), stage, reason, since)
        if not self._leads():
            return
        if spent > before.gpu_seconds:
            self._gpu_seconds.labels(job["metadata"]["namespace"]).inc(spent - before.gpu_seconds)
        if stage != before.stage and before.since is not None and before.stage not in TERMINAL_STAGES:
            self._stage_seconds.labels(before.stage).observe(now - before.since)

    def list_jobs(self) -> Iterable[JobState]:
        """Return all known jobs."""
        return self._known.values()

    def on_delete(self, job: Object) -> None:
        self._known.pop(job["metadata"]["uid"], None)


class _ObjectCollector(Collector):
    """Numbers of objects, counted at each scrape, so that they cost passes nothing."""

    def __init__(
        self,
        leads: Callable[[], bool],
        jobs: Callable[[], Iterable[JobState]],
        services: Callable[[], Iterable[Object]],
    ) -> None:
        self._leads = leads
        self._jobs = jobs
        self._services = services

    def collect(self) -> Iterator[Metric]:
        jobs = GaugeMetricFamily("hone_finetunejobs", "FineTuneJobs", labels=["stage", "reason"])
        services = GaugeMetricFamily("hone_inferenceservices", "InferenceServices", labels=["available"])
        if self._leads():
            for labels, number in Count((job.stage, job.reason) for job in self._jobs()).items():
                jobs.add_metric(labels, number)
            available = Count(str(_is_available(found)).lower() for found in self._services())
            for value in ("true", "false"):
                services.add_metric([value], available[value])
        yield jobs
        yield services


class _RefusedListCollector(Collector):
    """The lists that the API server refuses, by kind and namespace."""

    def __init__(self, unreadable: Callable[[], Iterable[tuple[str, str, str]]]) -> None:
        self._unreadable = unreadable

    def collect(self) -> Iterator[Metric]:
        found = GaugeMetricFamily(
            "hone_unreadable", "1 for a list that the API server refuses", labels=["resource", "namespace"]
        )
        for plural, namespace, _ in self._unreadable():
            found.add_metric([plural, namespace], 1)
        yield found


def _read_stage_and_reason(status: Object) -> tuple[str, str]:
    conditions = {each.get("type"): each for each in status.get("conditions") or []}
    for type_ in ("Suspended", "Running", "Accepted"):
        found = conditions.get(type_)
        if found and (type_ != "Suspended" or found.get("status") == "True"):
            return str(status.get("stage") or "Pending"), str(found.get("reason"))
    return str(status.get("stage") or "Pending"), ""


def _is_available(service: Object) -> bool:
    conditions = (service.get("status") or {}).get("conditions") or []
    return any(each.get("type") == "Available" and each.get("status") == "True" for each in conditions)


def _compute_ages(begun: Iterable[float]) -> list[float]:
    now = time.monotonic()
    return [now - each for each in begun]


def _parse_number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
