"""Failed writes of children, and when they are reported."""

import itertools
from datetime import timedelta
from typing import Any

import aiohttp
import pytest
from hone_api.reasons import API_FAILING, CHILD_CONTESTED, CHILD_REFUSED, QUOTA_EXCEEDED, HoneError
from hone_operator.finetunejob import plan as finetunejob_plan
from hone_operator.kube.client import ApiError
from hone_operator.objects.resources import DEPLOYMENTS, FINETUNEJOBS, JOBS, SERVICES, Key, Object
from hone_operator.reconcile.conditions import Conditions
from hone_operator.reconcile.plan import Action, Apply, Create, Delete, Patch
from hone_operator.reconcile.sync_failures import (
    REPORTED_AFTER_FAILURES,
    SYNCED,
    FailureCounts,
    SyncFailure,
    explain_contest,
    explain_read_failure,
    explain_write_failure,
    find_hidden_children,
    plan_failure_report,
    set_synced,
)
from hypothesis import given
from hypothesis import strategies as st
from observed import BEFORE, NOW, conditions, job_condition, job_object, observed_job, pod, success, terminated

KEY, OTHER = (Key(FINETUNEJOBS, "team", name) for name in ("faq", "other"))
BODY = {"metadata": {"name": "faq", "namespace": "team"}}
ACTIONS: list[tuple[Action, str, bool]] = [
    (Create(JOBS, BODY), "create Job faq", True),
    (Apply(DEPLOYMENTS, BODY), "apply Deployment faq", True),
    (Apply(SERVICES, BODY), "apply Service faq", False),
    (Patch(JOBS, "faq", {}), "patch Job faq", False),
    (Patch(DEPLOYMENTS, "faq", {}), "patch Deployment faq", False),
    (Delete(JOBS, "faq", "uid"), "delete Job faq", False),
]
REFUSALS = [400, 403, 404, 405, 413, 422]
PASSING = [
    *(ApiError(status, "no") for status in (401, 408, 409, 410, 429, 500, 502, 503, 504)),
    aiohttp.ClientConnectionError("cut"),
    TimeoutError(),
]


@pytest.mark.parametrize(("action", "what", "stops_pods"), ACTIONS)
@pytest.mark.parametrize("status", REFUSALS)
def test_a_refusal_is_reported_at_once(action: Action, what: str, stops_pods: bool, status: int) -> None:
    found = explain_write_failure(action, ApiError(status, "the field is wrong"), 1)
    assert found is not None
    assert found.stops_pods is stops_pods
    assert what.split(" ", 1)[1] in found.error.message
    assert "the field is wrong" in found.error.message
    assert stops_pods or (found.error.reason == CHILD_REFUSED and str(status) in found.error.message)


@pytest.mark.parametrize(("action", "what", "stops_pods"), ACTIONS)
@pytest.mark.parametrize("error", PASSING, ids=repr)
def test_any_other_failure_is_reported_after_several_tries(
    action: Action, what: str, stops_pods: bool, error: Exception
) -> None:
    assert [explain_write_failure(action, error, tries) for tries in range(1, REPORTED_AFTER_FAILURES)] == [None] * (
        REPORTED_AFTER_FAILURES - 1
    )
    found = explain_write_failure(action, error, REPORTED_AFTER_FAILURES)
    assert found is not None
    assert (found.error.reason, found.stops_pods) == (API_FAILING, stops_pods)
    assert f"Can't {what}" in found.error.message
    again = explain_write_failure(action, error, REPORTED_AFTER_FAILURES + 1)
    assert again is not None
    assert again.error.format_message() == found.error.format_message()  # otherwise each try would be a new message


@pytest.mark.parametrize("error", [ApiError(403, "no"), ApiError(500, "no"), TimeoutError()], ids=repr)
def test_children_that_cannot_be_read_are_reported_after_several_tries(error: Exception) -> None:
    assert explain_read_failure(error, REPORTED_AFTER_FAILURES - 1) is None
    found = explain_read_failure(error, REPORTED_AFTER_FAILURES)
    assert found is not None
    assert found.stops_pods
    refused = isinstance(error, ApiError) and error.status == 403
    assert found.error.reason == (CHILD_REFUSED if refused else API_FAILING)


NAMES = ["Job a", "Job b", "Service a"]


@given(st.lists(st.tuples(st.sampled_from([KEY, OTHER]), st.sets(st.sampled_from(NAMES))), max_size=20))
def test_failures_are_counted_in_a_row_for_each_child_of_each_owner(passes: list[tuple[Key, set[str]]]) -> None:
    troubles = FailureCounts()
    for step, (key, names) in enumerate(passes):
        rows = [failing for each, failing in reversed(passes[: step + 1]) if each == key]
        expected = {name: len(list(itertools.takewhile(lambda row: name in row, rows))) for name in names}  # noqa: B023
        assert troubles.count_failures(key, sorted(names)) == expected


def test_the_count_of_a_deleted_object_is_reset() -> None:
    troubles = FailureCounts()
    troubles.count_failures(KEY, NAMES)
    troubles.forget(KEY)
    troubles.forget(OTHER)
    assert troubles.count_failures(KEY, NAMES[:1]) == {NAMES[0]: 1}


def synced(owner: Object) -> Object | None:
    found = (owner.get("status") or {}).get("conditions") or []
    return next((each for each in found if each["type"] == SYNCED), None)


def reported(owner: Object, *troubles: SyncFailure) -> Object:
    conditions = Conditions(owner, NOW)
    set_synced(troubles, conditions)
    return owner | {"status": {"conditions": conditions.to_list(SYNCED)}}


def test_the_condition_appears_with_the_first_trouble_and_reports_its_end() -> None:
    owner = reported(job_object())
    assert synced(owner) is None
    trouble = explain_contest(("Job", "faq"), "'argocd' (its field manager)")
    owner = reported(owner, trouble, trouble, explain_contest(("Service", "faq"), None))
    found = synced(owner)
    assert found is not None
    assert (found["status"], found["reason"]) == ("False", CHILD_CONTESTED.name)
    assert found["message"].count("Job faq") == 1
    assert "'argocd'" in found["message"]
    assert "Service faq is changed or deleted again and again by somebody else, " in found["message"]
    found = synced(reported(owner))
    assert found is not None
    assert (found["status"], found["reason"]) == ("True", SYNCED)


def test_trouble_alone_changes_nothing_else_of_the_status() -> None:
    status: Object = {"stage": "Training", "trainers": 1, "conditions": []}
    trouble = explain_contest(("Job", "faq"), None)
    plan = plan_failure_report(job_object(status=status), NOW, [trouble])
    assert {**plan.status, "conditions": []} == status
    assert {each["type"] for each in plan.status["conditions"]} >= {SYNCED, "Ready"}
    assert not plan.actions
    assert [event.reason for event in plan.events] == [CHILD_CONTESTED.name]
    ended: Object = {"stage": "Succeeded", "conditions": []}
    assert plan_failure_report(job_object(status=ended), NOW, [trouble]).status == ended


REFUSED = SyncFailure(HoneError(QUOTA_EXCEEDED, "ConfigMap faq-manifest: exceeded quota"), stops_pods=True)


def without_config_map(one: Object, **more: Any) -> dict[str, tuple[str, str]]:
    """Return the conditions of a job whose ConfigMap is gone and can't be created again."""
    observed = observed_job(job_object(), one, sync_failures=[REFUSED], **more)
    observed.config_map = None
    return conditions(finetunejob_plan.plan_finetunejob(observed, NOW).status)


@pytest.mark.parametrize("last_answer_at", [{}, {"uid-p1": NOW - timedelta(hours=1)}])
def test_a_refused_child_stops_no_running_trainer(last_answer_at: Any) -> None:
    one = pod(running={"startedAt": BEFORE})
    found = without_config_map(one, last_answer_at=last_answer_at)
    well = observed_job(job_object(), one, last_answer_at=last_answer_at)
    assert found["Running"] == conditions(finetunejob_plan.plan_finetunejob(well, NOW).status)["Running"]
    assert found["Running"][0] == "True"
    assert found["Synced"] == ("False", "QuotaExceeded")
    assert without_config_map(pod())["Running"] == ("False", "QuotaExceeded")


@pytest.mark.parametrize("type_", ["Complete", "Failed"])
def test_a_refused_child_does_not_hide_a_result(type_: str) -> None:
    state = terminated(0, success()) if type_ == "Complete" else terminated(65, "no")
    ended = [job_condition(type_, "BackoffLimitExceeded")]
    observed = observed_job(job_object(), pod(terminated=state), job_conditions=ended, sync_failures=[REFUSED])
    assert finetunejob_plan.plan_finetunejob(observed, NOW).status["stage"] == (
        "Succeeded" if type_ == "Complete" else "Failed"
    )


def test_a_child_that_no_watch_selects_is_reported() -> None:
    owner = job_object()
    labels = {"app.kubernetes.io/managed-by": "policy"}
    reference = {"uid": owner["metadata"]["uid"], "kind": owner["kind"], "name": "faq", "controller": True}
    made = {"kind": "Job", "metadata": {"name": "faq-train", "labels": labels, "ownerReferences": [reference]}}
    theirs = {"kind": "Job", "metadata": {"name": "faq-train", "labels": labels}}
    assert find_hidden_children([theirs], owner) == []
    [found] = find_hidden_children([made, theirs], owner)
    assert found.error.reason.name == "ChildHidden"
    assert "Job faq-train has app.kubernetes.io/managed-by=policy instead of hone" in found.error.message
