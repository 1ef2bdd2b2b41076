"""Ready, Reconciling and Stalled: one judgement for every status."""

import ast
from pathlib import Path
from typing import Any

import hone_operator
import pytest
from adapter_states import ready, running
from hone_api.reasons import CATALOGUE
from hone_api.schema.crd import KINDS, UNOBSERVED, make_definition
from hone_operator.finetunejob.plan import plan_finetunejob as plan_job
from hone_operator.finetunejob.snapshot import ObservedFineTuneJob
from hone_operator.inferenceservice.plan import ObservedInferenceService
from hone_operator.inferenceservice.plan import plan_inferenceservice as plan_service
from hone_operator.objects.resources import Object
from hone_operator.reconcile import readiness
from hone_operator.reconcile.conditions import Conditions
from hypothesis import given
from hypothesis import strategies as st
from observed import (
    IMAGE,
    NOW,
    conditions,
    job_object,
    service_object,
)
from phases import BROKEN, JOBS, SERVICES, new_job

STATES = ("Ready", "Reconciling", "Stalled")
PROGRESS = ("PodStarting", "Retrying", "TrainerRunning", "RollingOut", "LoadingAdapters", "WaitingForFineTuneJob")
REASONS = [*CATALOGUE, *PROGRESS, "NotInAnyTable"]


def health(status: Object) -> tuple[str, str]:
    """Return the state on which the three conditions agree, and the reason."""
    found = {one["type"]: one for one in status["conditions"]}
    assert found["Ready"]["status"] == str("Reconciling" not in found and "Stalled" not in found)
    assert not {"Reconciling", "Stalled"} <= set(found)
    state = next((type_ for type_ in ("Reconciling", "Stalled") if type_ in found), "Ready")
    assert (found[state]["status"], found[state]["reason"]) == ("True", found["Ready"]["reason"])
    assert found[state]["message"] == found["Ready"]["message"] != ""
    return state, found["Ready"]["reason"]


def test_every_reason_of_the_catalogue_either_may_pass_or_waits_for_a_person() -> None:
    assert set(CATALOGUE) == readiness.TRANSIENT_REASONS | readiness.STALLED_REASONS, (
        "put each reason into one of the two"
    )
    assert not readiness.TRANSIENT_REASONS & readiness.STALLED_REASONS


def test_only_a_reason_of_the_catalogue_makes_a_tool_give_up() -> None:
    """Literal reasons of plans are progress; only a reason of the catalogue counts as a failure."""
    folder = Path(hone_operator.__file__).parent
    literals = {
        node.value
        for file in folder.rglob("*.py")
        if file.name != "readiness.py"
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert set(PROGRESS) <= literals
    assert not set(PROGRESS) & readiness.STALLED_REASONS


@pytest.mark.parametrize(("observed", "state", "reason"), JOBS.values(), ids=JOBS)
def test_the_health_of_a_job(observed: ObservedFineTuneJob, state: str, reason: str) -> None:
    assert health(plan_job(observed, NOW).status) == (state, reason)


def test_a_corrected_job_is_no_longer_stalled() -> None:
    owner = job_object()
    owner["status"] = plan_job(ObservedFineTuneJob(owner, BROKEN, IMAGE), NOW).status
    assert health(owner["status"])[0] == "Stalled"
    owner["metadata"]["generation"] = 2
    assert health(plan_job(new_job(owner), NOW).status) == ("Reconciling", "PodStarting")


@pytest.mark.parametrize(("observed", "state", "reason"), SERVICES.values(), ids=SERVICES)
def test_the_health_of_a_service(observed: ObservedInferenceService, state: str, reason: str) -> None:
    assert health(plan_service(observed, NOW).status) == (state, reason)


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


def test_engines_that_share_a_claim_of_one_node_wait_for_a_person() -> None:
    found = Conditions(service_object(), NOW)
    for type_, holds, reason in (("Accepted", True, "Accepted"), ("ArtifactsResolved", True, "Resolved")):
        found.set(type_, holds, reason, "")
    found.set("Progressing", False, "VolumeInUse", "The volume is attached to another node.")
    assert readiness.judge_service([], found).state == "Reconciling"
    words = "Claim models is ReadWriteOnce."
    found.set("Spreadable", False, "ClaimNotShared", words)
    assert readiness.judge_service([], found) == readiness.Health("Stalled", "ClaimNotShared", words)


def test_a_service_scaled_to_zero_is_ready() -> None:
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
        status = {"conditions": after.to_list(*earlier, *now, *readiness.READINESS_TYPES)}
        assert health(status) == (found.state, found.reason)
        if found.state == "Stalled" and stage != "Failed":
            assert found.reason in readiness.STALLED_REASONS


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_an_object_that_no_operator_has_looked_at_is_not_ready(kind: Any) -> None:
    versions = make_definition(kind)["spec"]["versions"]
    default = versions[0]["schema"]["openAPIV3Schema"]["properties"]["status"]["default"]
    assert default == UNOBSERVED
    assert (default["observedGeneration"], default["conditions"][0]["status"]) == (-1, "Unknown")
    kind.model_validate((job_object() if kind.__name__ == "FineTuneJob" else service_object()) | {"status": default})
