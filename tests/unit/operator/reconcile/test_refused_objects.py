"""The conditions of an object that is not worked on still report what its pods do."""

from typing import Any

import pytest
from adapter_states import ready as with_sidecar
from adapter_states import running as with_adapters
from hone_api.reasons import INVALID_SPEC, HoneError
from hone_operator.finetunejob import plan as finetunejob_plan
from hone_operator.inferenceservice.plan import ObservedInferenceService, plan_inferenceservice
from observed import (
    BEFORE,
    NOW,
    conditions,
    finished_job,
    foreign,
    job_object,
    message,
    observed_job,
    of_predecessor,
    pod,
)
from service_states import ready, running

Object = dict[str, Any]
INVALID = HoneError(INVALID_SPEC, "spec.x: no")


def conflicting(observed: ObservedInferenceService) -> str:
    observed.service = foreign(observed.service or {})
    return "NameConflict"


def leaving(observed: ObservedInferenceService) -> str:
    observed.service = of_predecessor(observed.service or {})
    observed.owner["metadata"]["creationTimestamp"] = BEFORE
    return "ChildLeaving"


def just_leaving(observed: ObservedInferenceService) -> str:
    observed.service = of_predecessor(observed.service or {})
    return "ChildrenLeaving"


def invalid(observed: ObservedInferenceService) -> str:
    observed.spec = INVALID
    return "InvalidSpec"


def with_one_merged_model() -> ObservedInferenceService:
    return running(finished_job(kind="merged"), ready("p1"))


REFUSALS = [conflicting, leaving, just_leaving, invalid]


@pytest.mark.parametrize("refuse", REFUSALS)
@pytest.mark.parametrize("serve", [lambda: with_adapters(with_sidecar("p1")), with_one_merged_model])
def test_engines_that_are_gone_are_not_reported_to_answer(refuse: Any, serve: Any) -> None:
    observed = serve()
    before = observed.owner["status"] = plan_inferenceservice(observed, NOW).status
    assert conditions(before)["Available"] == ("True", "EnginesReady")
    reason = refuse(observed)
    there = plan_inferenceservice(observed, NOW).status
    assert (conditions(there)["Available"], there["readyReplicas"]) == (("True", "EnginesReady"), 1)
    assert [each.get("loaded") for each in there["models"]] == [each.get("loaded") for each in before["models"]]
    observed.pods = []
    found = plan_inferenceservice(observed, NOW)
    assert conditions(found.status)["Available"] == ("False", "NoEngineReady")
    assert conditions(found.status)["Progressing"][1] == reason
    assert conditions(found.status)["Ready"][0] == "False"
    assert (found.status["readyReplicas"], found.poll_urls, found.actions) == (0, {}, [])
    assert {each["loaded"] for each in found.status["models"] if "loaded" in each} <= {"0/1"}


@pytest.mark.parametrize("refuse", REFUSALS)
def test_engines_of_a_refused_service_are_still_polled(refuse: Any) -> None:
    observed = with_adapters(with_sidecar("p1"))
    refuse(observed)
    assert list(plan_inferenceservice(observed, NOW).poll_urls) == ["uid-p1"]


def test_another_ones_deployment_has_none_of_the_services_engines() -> None:
    observed = running(finished_job(), ready("p1"))
    observed.deployment = foreign(observed.deployment or {})
    found = plan_inferenceservice(observed, NOW).status
    assert (conditions(found)["Available"], found["readyReplicas"]) == (("False", "NoEngineReady"), 0)


@pytest.mark.parametrize("runs", [True, False])
@pytest.mark.parametrize("refusal", ["InvalidSpec", "NameConflict", "ChildLeaving"])
def test_a_trainer_of_a_refused_job_is_reported_to_run(refusal: str, runs: bool) -> None:
    observed = observed_job(job_object(), *([pod(running={"startedAt": BEFORE})] if runs else []))
    if refusal == "InvalidSpec":
        observed.spec = INVALID
    elif refusal == "NameConflict":
        observed.config_map = foreign(observed.config_map or {})
    else:
        observed.config_map = of_predecessor(observed.config_map or {})
        observed.owner["metadata"]["creationTimestamp"] = BEFORE
    found = conditions(finetunejob_plan.plan_finetunejob(observed, NOW).status)
    assert found["Running"] == (str(runs), refusal)
    assert found["Accepted"] == ("False", refusal)
    observed.job = foreign(observed.job or {})
    assert conditions(finetunejob_plan.plan_finetunejob(observed, NOW).status)["Running"][0] == "False"


def test_a_paused_deployment_is_named_with_the_command_that_resumes_it() -> None:
    observed = running(finished_job(), ready("p1"))
    assert observed.deployment
    observed.deployment["spec"]["paused"] = True
    assert conditions(plan_inferenceservice(observed, NOW).status)["Progressing"][1] == "WaitingForEngines"
    observed.deployment["status"]["updatedReplicas"] = 0
    found = plan_inferenceservice(observed, NOW).status
    assert conditions(found)["Progressing"] == ("False", "DeploymentPaused")
    assert "kubectl rollout resume deployment/chat --namespace team" in message(found, "Progressing")
    assert conditions(found)["Stalled"] == ("True", "DeploymentPaused")
    observed.deployment["spec"]["paused"] = False
    assert conditions(plan_inferenceservice(observed, NOW).status)["Progressing"] == ("True", "RollingOut")
