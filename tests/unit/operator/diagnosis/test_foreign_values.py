"""Values that others wrote: an invalid one counts as unknown, and never causes an error of the operator."""

from datetime import timedelta
from typing import Any

import pytest
from held_pods import held
from hone_operator.diagnosis import events, pod_state
from hone_operator.diagnosis.node_fit import PodRequirements, find_unmet_requirements
from hone_operator.diagnosis.nodes import ClusterNodes, Node
from hone_operator.finetunejob import plan as finetunejob_plan
from hone_operator.finetunejob.jobs import build_train_job
from hone_operator.finetunejob.snapshot import get_pod_index
from hone_operator.inferenceservice import adapter_sidecar, autoscaling
from hone_operator.objects.timestamps import format_timestamp
from hone_operator.reconcile.conditions import Conditions
from hypothesis import given, settings
from hypothesis import strategies as st
from observed import BEFORE, IMAGE, NOW, job_object, observed_job, parsed_job, pod, success, terminated, unschedulable

Object = dict[str, Any]
INDEX = "batch.kubernetes.io/job-completion-index"
ODD = [
    *("", " ", "abc", "3.5", "-1", "+7", "007", "²", "٣", "1" * 5000, "1e400", "inf", "nan", "0x10", "1_000"),
    *("0000-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "2026-03-01", "2026-03-01T11:00:00", "2026-13-01T00:00:00Z"),
]
texts = st.sampled_from(ODD) | st.text(max_size=6)
requirements = st.fixed_dictionaries(
    {
        "key": st.sampled_from(["gen", "zone", ""]),
        "operator": st.sampled_from(["Gt", "Lt", "In", "NotIn", "Exists", "~"]),
    },
    optional={"values": st.lists(texts, max_size=2)},
)


@settings(max_examples=40)
@given(st.lists(requirements, max_size=2), st.lists(requirements, max_size=1), texts)
def test_an_affinity_with_odd_values_fits_no_node_or_some(labels: list[Object], fields: list[Object], gen: str) -> None:
    found = unschedulable("0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector.", cpu="1")
    terms = [{"matchExpressions": labels, "matchFields": fields}]
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
    found["spec"]["affinity"] = {"nodeAffinity": required}
    facts = ClusterNodes((Node("n1", {"cpu": 8.0}, {"cpu": 8.0}, {"gen": gen}),))
    plan = finetunejob_plan.plan_finetunejob(observed_job(job_object(), found, cluster=facts), NOW)
    assert next(c for c in plan.status["conditions"] if c["type"] == "Running")["reason"] == "Unschedulable"


@pytest.mark.parametrize(
    ("operator", "label", "value", "fits"),
    [
        *(("Gt", "4", "3", True), ("Gt", "3", "3", False), ("Lt", "-4", "-3", True), ("Lt", "+2", "3", True)),
        *(("Gt", "4", "3.5", False), ("Gt", "4.5", "3", False), ("Gt", "٤", "3", False), ("Lt", "3", "", False)),
    ],
)
def test_greater_and_less_compare_whole_numbers_as_the_scheduler_does(
    operator: str, label: str, value: str, fits: bool
) -> None:
    term = {"matchExpressions": [{"key": "gen", "operator": operator, "values": [value]}]}
    assert (
        find_unmet_requirements(Node("n1", labels={"gen": label}), PodRequirements(node_terms=[term])) == []
    ) is fits


@settings(max_examples=40)
@given(texts, texts, texts, texts, st.sampled_from([0, 65, 70]))
def test_pods_with_odd_labels_and_times_are_judged(
    label: str, annotation: str, started: str, finished: str, exit_code: int
) -> None:
    for nodes in (1, 2):
        owner = job_object(resources={"gpus": 8, "nodes": nodes}, ttlSecondsAfterFinished=60)
        ended = terminated(exit_code, success()) | {"startedAt": started, "finishedAt": finished}
        for one in (pod(terminated=ended), pod(running={"startedAt": started}), held(ended)):
            one["metadata"] |= {"labels": {INDEX: label}, "annotations": {INDEX: annotation}}
            observed = observed_job(owner, one, trainer_pods=[one])
            for _ in range(2):
                observed.owner["status"] = finetunejob_plan.plan_finetunejob(observed, NOW).status
        owner["status"] = {"stage": "Succeeded", "completionTime": finished, "conditions": []}
        finetunejob_plan.plan_finetunejob(observed, NOW)


@settings(max_examples=40)
@given(texts, texts, texts)
def test_a_status_with_odd_times_is_judged(observed_at: str, since: str, end: str) -> None:
    attempt = {"pod": "p0", "uid": "uid-p0", "startTime": since, "endTime": end, "seconds": 5}
    unended = {"pod": "p1", "uid": "uid-p1", "startTime": since, "seconds": 5}
    one = pod(running={"startedAt": BEFORE})
    progress = {"step": 1, "totalSteps": 2, "observedAt": observed_at}
    owner = job_object(status={"stage": "Training", "attempts": [attempt, unended], "progress": progress})
    assert finetunejob_plan.plan_finetunejob(observed_job(owner, one, trainer_pods=[one]), NOW).status["attempts"]


@pytest.mark.parametrize("value", [*ODD, "1"])
def test_the_index_label_is_ignored_where_a_job_has_one_pod_at_a_time(value: str) -> None:
    owner = job_object(
        pod={"labels": {INDEX: value[:63], "team": "nlp"}} if value.isalnum() and value.isascii() else {}
    )
    made = build_train_job(owner, parsed_job(owner), IMAGE)["spec"]["template"]["metadata"]["labels"]
    assert INDEX not in made
    one = pod(running={"startedAt": BEFORE})
    one["metadata"]["labels"] = {INDEX: value}
    plan = finetunejob_plan.plan_finetunejob(observed_job(owner, one), NOW)
    assert next(c for c in plan.status["conditions"] if c["type"] == "Running")["reason"] == "TrainerRunning"


def test_the_index_is_that_of_the_jobs_controller() -> None:
    assert get_pod_index({"metadata": {"labels": {INDEX: "3"}}}) == 3
    assert get_pod_index({"metadata": {"labels": {INDEX: "abc"}, "annotations": {INDEX: "3"}}}) == 3
    assert get_pod_index({"metadata": {}}) == 0


fields = st.fixed_dictionaries(
    {"metadata": st.just({"creationTimestamp": BEFORE}), "involvedObject": st.sampled_from([{}, {"name": "job-a-1f"}])},
    optional={
        "type": st.sampled_from(["Warning", "Normal", "", "~"]),
        "reason": texts | st.sampled_from(["FailedScheduling", "TriggeredScaleUp"]),
        "message": texts,
        "lastTimestamp": texts | st.none(),
        "eventTime": texts | st.none(),
        "series": st.fixed_dictionaries({}, optional={"lastObservedTime": texts}) | st.none(),
        "source": st.just({}),
    },
)


@settings(max_examples=40)
@given(st.lists(fields, max_size=3))
def test_events_that_anybody_wrote_are_read(found: list[Object]) -> None:
    for read in (events.find_newest_event, events.find_standing_warning, events.find_scaling_report):
        read(found)
    events.find_workload_event(found, "a")


@settings(max_examples=40)
@given(texts)
def test_a_nudge_with_an_odd_time_is_made_again(at: str) -> None:
    one = pod()
    one["metadata"]["annotations"] = {adapter_sidecar.NUDGE_ANNOTATION: f"r1 {at}"}
    answers = {"uid-p1": {"revision": "r0", "adapters": {}, "models": []}}
    assert len(adapter_sidecar.plan_nudges([one], answers, "r1", NOW)) == 1
    one["metadata"]["annotations"] = {
        adapter_sidecar.NUDGE_ANNOTATION: f"r1 {format_timestamp(NOW + timedelta(days=1))}"
    }
    assert len(adapter_sidecar.plan_nudges([one], answers, "r1", NOW)) == 1
    one["metadata"]["annotations"] = {adapter_sidecar.NUDGE_ANNOTATION: f"r1 {format_timestamp(NOW)}"}
    assert adapter_sidecar.plan_nudges([one], answers, "r1", NOW) == []


@pytest.mark.parametrize("status", ["True", "False"])
def test_an_autoscaler_may_leave_its_reason_and_message_out(status: str) -> None:
    conditions = Conditions(job_object(), NOW)
    autoscaling.set_scaling_condition(
        {"status": {"conditions": [{"type": "ScalingActive", "status": status}]}}, conditions
    )
    assert all(conditions.to_list(autoscaling.SCALING_CONDITION)[0][part] for part in ("reason", "message"))


@pytest.mark.parametrize("hours", [-1, 0, 1])
def test_a_waiting_pod_is_explained_with_any_clock_of_the_api_server(hours: int) -> None:
    one = pod(waiting={"reason": "ContainerCreating"})
    one["metadata"]["creationTimestamp"] = format_timestamp(NOW + timedelta(hours=hours))
    assert pod_state.is_slow_to_start(one, NOW + timedelta(minutes=1))
    assert not pod_state.is_slow_to_start(one | {"metadata": {"creationTimestamp": format_timestamp(NOW)}}, NOW)
