"""Ready, Reconciling and Stalled: one judgement for whatever else a status says."""

import ast
from pathlib import Path
from typing import Any

import pytest
from hone_api.crd import KINDS, UNOBSERVED, definition
from hone_api.reasons import CATALOGUE, INVALID_SPEC, HoneError
from hone_operator import readiness
from hone_operator.conditions import Conditions
from hone_operator.finetunejob import plan as plan_job
from hone_operator.inferenceservice import plan as plan_service
from hone_operator.jobview import ObservedFineTuneJob
from hone_operator.resources import Object
from hypothesis import given
from hypothesis import strategies as st
from observed import (
    IMAGE,
    NOW,
    PREPARED,
    conditions,
    failure,
    finished_job,
    foreign,
    job_condition,
    job_object,
    observed_job,
    observed_service,
    parsed_job,
    pod,
    service_child,
    service_object,
    success,
    terminated,
    unschedulable,
)
from test_plan_adapters import ready, running

STATES = ("Ready", "Reconciling", "Stalled")
PROGRESS = ("PodStarting", "Retrying", "TrainerRunning", "RollingOut", "LoadingAdapters", "WaitingForFineTuneJob")
REASONS = [*CATALOGUE, *PROGRESS, "NotInAnyTable"]


def health(status: Object) -> tuple[str, str]:
    """The state that the three conditions agree on, and the reason."""
    found = {one["type"]: one for one in status["conditions"]}
    assert found["Ready"]["status"] == str("Reconciling" not in found and "Stalled" not in found)
    assert not {"Reconciling", "Stalled"} <= set(found)
    state = next((type_ for type_ in ("Reconciling", "Stalled") if type_ in found), "Ready")
    assert (found[state]["status"], found[state]["reason"]) == ("True", found["Ready"]["reason"])
    assert found[state]["message"] == found["Ready"]["message"] != ""
    return state, found["Ready"]["reason"]


def test_every_reason_of_the_catalogue_either_may_pass_or_waits_for_a_person() -> None:
    assert set(CATALOGUE) == readiness.MAY_PASS | readiness.WAITS_FOR_A_PERSON, "put each reason into one of the two"
    assert not readiness.MAY_PASS & readiness.WAITS_FOR_A_PERSON


def test_only_a_reason_of_the_catalogue_makes_a_tool_give_up() -> None:
    """What plans set as a literal is progress; a failure must be named in the catalogue to count as one."""
    folder = Path(readiness.__file__).parent
    literals = {
        node.value
        for file in folder.rglob("*.py")
        if file.name != "readiness.py"
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert set(PROGRESS) <= literals
    assert not set(PROGRESS) & readiness.WAITS_FOR_A_PERSON


gpu_job = job_object(resources={"gpus": 1}, status=PREPARED)


def refused_job() -> ObservedFineTuneJob:
    owner = job_object()
    observed = ObservedFineTuneJob(owner, parsed_job(owner), IMAGE)
    observed.refusal = 'pods "x" is forbidden: exceeded quota: gpus'
    return observed


def conflicting_job() -> ObservedFineTuneJob:
    observed = observed_job(job_object())
    assert observed.config_map
    observed.config_map = foreign(observed.config_map)
    return observed


def leaving_job() -> ObservedFineTuneJob:
    observed = observed_job(job_object())
    assert observed.config_map
    observed.config_map["metadata"]["deletionTimestamp"] = "2026-03-01T11:59:00Z"
    return observed


def new_job(owner: Object) -> ObservedFineTuneJob:
    return ObservedFineTuneJob(owner, parsed_job(owner), IMAGE)


BROKEN = HoneError(INVALID_SPEC, "spec.x is wrong")
waiting = pod(waiting={"reason": "ImagePullBackOff", "message": "not found"})
JOBS: dict[str, tuple[ObservedFineTuneJob, str, str]] = {
    "new": (new_job(job_object()), "Reconciling", "PodStarting"),
    "broken": (ObservedFineTuneJob(job_object(), BROKEN, IMAGE), "Stalled", "InvalidSpec"),
    "conflict": (conflicting_job(), "Stalled", "NameConflict"),
    "child in deletion": (leaving_job(), "Reconciling", "ChildrenLeaving"),
    "refused": (refused_job(), "Reconciling", "QuotaExceeded"),
    "no GPU": (observed_job(gpu_job, unschedulable("0/1 nodes: 1 Insufficient amd.com/gpu.")), "Reconciling", ""),
    "no image": (observed_job(job_object(), waiting), "Stalled", "ImagePullFailed"),
    "running": (observed_job(job_object(), pod(running={"startedAt": "2026-03-01T12:00:00Z"})), "Reconciling", ""),
    "suspended": (new_job(job_object(suspend=True)), "Ready", "Suspended"),
    "stopping": (
        observed_job(job_object(suspend=True), pod(running={"startedAt": "2026-03-01T11:00:00Z"})),
        "Reconciling",
        "Suspending",
    ),
    "retried": (observed_job(job_object(), pod(terminated=terminated(71, "no hub"))), "Reconciling", "Retrying"),
    "succeeded": (
        observed_job(
            job_object(), pod(terminated=terminated(0, success())), job_conditions=[job_condition("Complete")]
        ),
        "Ready",
        "Succeeded",
    ),
    "failed": (
        observed_job(
            job_object(),
            pod(terminated=terminated(65, failure("DatasetInvalid", "row 7"))),
            job_conditions=[job_condition("Failed", "PodFailurePolicy")],
        ),
        "Stalled",
        "DatasetInvalid",
    ),
    "failed for what might pass": (
        observed_job(job_object(), job_conditions=[job_condition("Failed", "DeadlineExceeded")]),
        "Stalled",
        "DeadlineExceeded",
    ),
}


@pytest.mark.parametrize(("observed", "state", "reason"), JOBS.values(), ids=JOBS)
def test_the_health_of_a_job(observed: ObservedFineTuneJob, state: str, reason: str) -> None:
    found = health(plan_job(observed, NOW).status)
    assert found == (state, reason or found[1])


def test_a_job_whose_job_a_queue_suspended_is_on_its_way() -> None:
    observed = observed_job(job_object())
    assert observed.job
    observed.job["spec"]["suspend"] = True
    assert health(plan_job(observed, NOW).status) == ("Reconciling", "Queued")


def test_a_corrected_job_is_no_longer_stalled() -> None:
    owner = job_object()
    owner["status"] = plan_job(ObservedFineTuneJob(owner, BROKEN, IMAGE), NOW).status
    assert health(owner["status"])[0] == "Stalled"
    owner["metadata"]["generation"] = 2
    assert health(plan_job(new_job(owner), NOW).status) == ("Reconciling", "PodStarting")


def test_the_health_of_a_service() -> None:
    service, job = service_object(), finished_job()

    def found(observed: object) -> tuple[str, str]:
        return health(plan_service(observed, NOW).status)  # type: ignore[arg-type]

    assert found(observed_service(service)) == ("Reconciling", "WaitingForFineTuneJob")
    failed = job_object(status={"stage": "Failed", "conditions": []})
    assert found(observed_service(service, failed)) == ("Stalled", "FineTuneJobFailed")
    assert found(observed_service(service, job)) == ("Reconciling", "RollingOut")
    observed = observed_service(service, job)
    observed.spec = BROKEN
    assert found(observed) == ("Stalled", "InvalidSpec")
    assert found(observed_service(service, job, service=foreign(service_child(service)))) == ("Stalled", "NameConflict")
    leaving = service_child(service)
    leaving["metadata"]["deletionTimestamp"] = "2026-03-01T11:59:00Z"
    assert found(observed_service(service, job, service=leaving)) == ("Reconciling", "ChildrenLeaving")
    no_image = pod("chat-1", container="engine", waiting={"reason": "ImagePullBackOff", "message": "not found"})
    assert found(observed_service(service, job, pods=[no_image])) == ("Stalled", "ImagePullFailed")


def test_a_service_is_ready_when_every_engine_lists_every_model() -> None:
    observed = running(ready("p1"), ready("p2"))
    assert health(plan_service(observed, NOW).status) == ("Ready", "EnginesReady")
    observed.answers["uid-p2"]["adapters"]["faq"]["loaded"] = False
    assert health(plan_service(observed, NOW).status)[0] == "Reconciling"
    observed.answers = {}
    assert health(plan_service(observed, NOW).status)[0] == "Reconciling"


def test_a_model_that_an_engine_does_not_list_keeps_a_service_from_being_ready() -> None:
    settled = Conditions(service_object(), NOW)
    for type_, holds, reason in (("Accepted", True, "Accepted"), ("ArtifactsResolved", True, "Resolved")):
        settled.set(type_, holds, reason, "")
    settled.set("Progressing", False, "Complete", "")
    settled.set("Available", True, "EnginesReady", "")
    found = readiness.judge_service([{"name": "faq", "loaded": "1/2"}, {"name": "base"}], settled)
    assert (found.state, found.reason) == ("Reconciling", "ModelsNotLoaded")
    assert "Model faq is loaded on 1 of 2 engines" in found.message
    assert readiness.judge_service([{"name": "faq", "loaded": "2/2"}, {"name": "base"}], settled).state == "Ready"


def test_a_service_without_engines_is_as_it_should_be() -> None:
    assert health(plan_service(running(), NOW).status) == ("Ready", "ScaledToZero")


def test_a_service_that_serves_while_its_next_model_failed_is_stalled() -> None:
    observed = running(ready())
    observed.jobs = {"faq": job_object(status={"stage": "Failed", "conditions": []})}
    found = plan_service(observed, NOW).status
    assert health(found) == ("Stalled", "FineTuneJobFailed")
    assert conditions(found)["Available"] == ("True", "EnginesReady")


_words = st.tuples(st.booleans(), st.sampled_from(REASONS))
_types = st.dictionaries(
    st.sampled_from(("Accepted", "Running", "Suspended", "ArtifactsResolved", "Progressing", "Available")), _words
)


@given(_types, _types, st.sampled_from(("Pending", "Training", "Suspended", "Succeeded", "Failed")))
def test_any_conditions_give_one_health_that_ignores_what_an_earlier_pass_set(
    earlier: dict[str, tuple[bool, str]], now: dict[str, tuple[bool, str]], stage: str
) -> None:
    before = Conditions(job_object(), NOW)
    for type_, (holds, reason) in earlier.items():
        before.set(type_, holds, reason, "earlier")
    owner = job_object(status={"conditions": before.to_list(*earlier)})
    after = Conditions(owner, NOW)
    for type_, (holds, reason) in now.items():
        after.set(type_, holds, reason, "now")
    for found in (readiness.judge_job(stage, after), readiness.judge_service([], after)):
        assert found.state in STATES
        assert found.message != "earlier"
        readiness.set_conditions(after, found)
        status = {"conditions": after.to_list(*earlier, *now, *readiness.TYPES)}
        assert health(status) == (found.state, found.reason)
        if found.state == "Stalled" and stage != "Failed":
            assert found.reason in readiness.WAITS_FOR_A_PERSON


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_an_object_that_no_operator_has_looked_at_is_not_ready(kind: Any) -> None:
    versions = definition(kind)["spec"]["versions"]
    default = versions[0]["schema"]["openAPIV3Schema"]["properties"]["status"]["default"]
    assert default == UNOBSERVED
    assert (default["observedGeneration"], default["conditions"][0]["status"]) == (-1, "Unknown")
    kind.model_validate((job_object() if kind.__name__ == "FineTuneJob" else service_object()) | {"status": default})
