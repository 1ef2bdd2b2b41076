"""Metrics are right after deletions and restarts, the dashboard uses existing ones, and a stuck loop is found."""

import json
import re
from pathlib import Path

import pytest
from hone_operator.kube.workqueue import WorkQueue
from hone_operator.objects.resources import FINETUNEJOBS, Key, Object
from hone_operator.observability.health import STUCK_SECONDS, explain_stuck
from hone_operator.observability.metrics import JobMeter, Metrics
from prometheus_client import CollectorRegistry

ROOT = Path(__file__).parents[4]
DASHBOARD = ROOT / "charts/hone/dashboards/hone.json"


def job(uid: str, stage: str = "", gpu_seconds: float = 0, reason: str = "") -> Object:
    status = {
        "stage": stage,
        "gpuSeconds": gpu_seconds,
        "conditions": [{"type": "Running", "status": "True", "reason": reason}],
    }
    return {"metadata": {"uid": uid, "namespace": "team", "name": uid}, **({"status": status} if stage else {})}


def value(metrics: Metrics, metric: str, /, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(metric, labels)


def names(registry: CollectorRegistry) -> set[str]:
    """Return all names that a query may use, also of metrics without a sample yet."""
    found = set()
    for family in registry.collect():
        suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_count", "_sum"]}.get(family.type, [""])
        found |= {family.name + suffix for suffix in suffixes}
    return found


def test_gpu_seconds_never_fall_and_a_restart_adds_nothing() -> None:
    metrics = Metrics()
    meter = JobMeter(metrics, lambda: True)
    meter.on_upsert(job("old", "Training", 1000))  # it existed before this process
    meter.on_upsert(job("new"))
    meter.on_upsert(job("new", "Training", 30))
    meter.on_upsert(job("old", "Training", 1010))
    meter.on_upsert(job("old", "Training", 900))  # corrected downwards
    meter.on_upsert(job("old", "Training", 1015))
    assert value(metrics, "hone_finetunejob_gpu_seconds_total", namespace="team") == 45
    meter.on_delete(job("new"))
    assert value(metrics, "hone_finetunejob_gpu_seconds_total", namespace="team") == 45


def test_a_follower_counts_nothing_and_later_continues_from_the_present_values() -> None:
    metrics, leads = Metrics(), [False]
    meter = JobMeter(metrics, lambda: leads[0])
    metrics.watch_objects(lambda: leads[0], meter.list_jobs, list)
    meter.on_upsert(job("a", "Training", 5, "TrainerRunning"))
    meter.on_upsert(job("a", "Training", 50, "TrainerRunning"))
    assert value(metrics, "hone_finetunejobs", stage="Training", reason="TrainerRunning") is None
    assert value(metrics, "leader_election_master_status", name="hone-operator") == 0
    leads[0] = True
    assert value(metrics, "hone_finetunejobs", stage="Training", reason="TrainerRunning") == 1
    meter.on_upsert(job("a", "Training", 60))
    assert value(metrics, "hone_finetunejob_gpu_seconds_total", namespace="team") == 10
    assert value(metrics, "leader_election_master_status", name="hone-operator") == 1
    assert value(Metrics("r-operator"), "leader_election_master_status", name="r-operator") == 0


def test_the_time_in_a_stage_is_recorded_when_it_ends() -> None:
    metrics = Metrics()
    meter = JobMeter(metrics, lambda: True)
    for stage in ("", "Preparing", "Training", "Training", "Succeeded"):
        meter.on_upsert(job("a", stage))
    meter.on_upsert(job("b", "Training"))  # the beginning of its stage is unknown
    meter.on_upsert(job("b", "Succeeded"))
    counts = {
        stage: value(metrics, "hone_finetunejob_stage_seconds_count", stage=stage)
        for stage in ("Pending", "Preparing", "Training", "Succeeded")
    }
    assert counts == {"Pending": 1, "Preparing": 1, "Training": 1, "Succeeded": None}


def test_objects_are_counted_by_stage_and_reason_at_each_scrape() -> None:
    metrics = Metrics()
    meter = JobMeter(metrics, lambda: True)
    metrics.watch_objects(lambda: True, meter.list_jobs, lambda: [{"metadata": {"name": "faq"}}])
    for each in (job("a"), job("b", "Pending", reason="Unschedulable"), job("c", "Pending", reason="Unschedulable")):
        meter.on_upsert(each)
    assert value(metrics, "hone_finetunejobs", stage="Pending", reason="Unschedulable") == 2
    assert value(metrics, "hone_finetunejobs", stage="Pending", reason="") == 1
    assert value(metrics, "hone_inferenceservices", available="false") == 1
    meter.on_delete(job("c"))
    assert value(metrics, "hone_finetunejobs", stage="Pending", reason="Unschedulable") == 1


def test_the_dashboard_asks_for_metrics_that_exist() -> None:
    metrics = Metrics()
    WorkQueue(metrics)
    metrics.watch_objects(lambda: True, JobMeter(metrics, lambda: True).list_jobs, list)
    panels = json.loads(DASHBOARD.read_text())["panels"]
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    asked = {name for query in queries for name in re.findall(r"\b[a-z]+(?:_[a-z]+)+\b", query)}
    asked -= {"histogram_quantile"}
    assert len(asked) > 10
    assert asked <= names(metrics.registry)
    assert len({panel["id"] for panel in panels}) == len(panels)


@pytest.mark.parametrize(
    ("longest_pass", "longest_wait", "since_last", "stuck"),
    [
        (0, 0, 10 * STUCK_SECONDS, False),  # idle
        (STUCK_SECONDS + 1, 0, 0, True),
        (10, STUCK_SECONDS + 1, 1, False),  # busy
        (10, STUCK_SECONDS + 1, STUCK_SECONDS + 1, True),
    ],
)
def test_a_loop_is_stuck_when_no_pass_ends_although_some_should(
    longest_pass: float, longest_wait: float, since_last: float, stuck: bool
) -> None:
    assert bool(explain_stuck(longest_pass, longest_wait, since_last)) is stuck


def test_the_queue_reports_depth_and_retries() -> None:
    metrics = Metrics()
    queue = WorkQueue(metrics)
    queue.add(Key(FINETUNEJOBS, "team", "a"))
    queue.add(Key(FINETUNEJOBS, "team", "b"))
    assert value(metrics, "workqueue_depth", name="hone") == 2
    assert value(metrics, "workqueue_adds_total", name="hone") == 2
