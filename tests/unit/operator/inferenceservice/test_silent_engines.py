"""Engines that never report their loaded models to the operator are not reported as serving."""

from datetime import timedelta
from typing import Any

import pytest
from adapter_states import ready as with_sidecar
from adapter_states import running as with_adapters
from hone_operator.inferenceservice.plan import ObservedInferenceService, plan_inferenceservice
from hone_operator.inferenceservice.silent_engines import MAX_SILENCE
from observed import DIGEST, NOW, conditions, finished_job, message
from service_states import ready, running

LONG_AGO, JUST_NOW = NOW - MAX_SILENCE - timedelta(seconds=1), NOW - timedelta(seconds=1)
LIST = {"data": [{"id": "faq", "digest": DIGEST}]}


def hot(*names: str) -> ObservedInferenceService:
    """Return a service whose engines have sidecars, none of which has answered."""
    observed = with_adapters(*(with_sidecar(name) for name in names))
    observed.answers = {}
    return observed


def merged(*names: str, **spec: Any) -> ObservedInferenceService:
    """Return a service whose engines have no sidecars, and have not answered."""
    return running(finished_job(kind="merged"), *map(ready, names), replicas=len(names), **spec)


@pytest.mark.parametrize(("observe", "port"), [(hot, 8081), (merged, 8000)])
def test_engines_that_never_answer_are_reported_with_the_port(observe: Any, port: int) -> None:
    observed = observe("p1", "p2")
    observed.last_answer_at = {"uid-p1": LONG_AGO, "uid-p2": LONG_AGO}
    found = plan_inferenceservice(observed, NOW)
    assert conditions(found.status)["Progressing"] == ("False", "EngineSilent")
    assert conditions(found.status)["Ready"][0] == "False"
    words = message(found.status, "Progressing")
    assert words.startswith(f"2 of 2 engines do not answer the operator: pod p1 is ready, and its port {port}")
    assert f"reach port {port}" in words
    assert "NetworkPolicies" in words
    assert "PeerAuthentication" in words
    assert [model.get("loaded") for model in found.status["models"]] == [None] * len(found.status["models"])
    assert found.requeue_after_seconds is not None


@pytest.mark.parametrize("observe", [hot, merged])
def test_at_first_the_answers_are_waited_for(observe: Any) -> None:
    observed = observe("p1")
    observed.last_answer_at = {"uid-p1": JUST_NOW}
    found = plan_inferenceservice(observed, NOW)
    assert conditions(found.status)["Progressing"] == ("True", "WaitingForEngines")
    assert conditions(found.status)["Ready"][0] == "False"
    assert found.requeue_after_seconds is not None


def test_one_engine_that_falls_silent_among_others_is_reported() -> None:
    observed = merged("p1", "p2")
    observed.answers = {"uid-p1": LIST, "uid-p2": LIST}
    observed.last_answer_at = {"uid-p1": JUST_NOW, "uid-p2": LONG_AGO}
    found = plan_inferenceservice(observed, NOW)
    assert conditions(found.status)["Progressing"] == ("False", "EngineSilent")
    assert message(found.status, "Progressing").startswith("1 of 2 engines do not answer the operator: pod p2")


def test_a_restart_of_the_operator_changes_no_condition() -> None:
    observed = merged("p1")
    observed.answers, observed.last_answer_at = {"uid-p1": LIST}, {"uid-p1": JUST_NOW}
    observed.owner["metadata"]["generation"] = 1
    observed.owner["status"] = plan_inferenceservice(observed, NOW).status
    assert conditions(observed.owner["status"])["Progressing"] == ("False", "Complete")
    observed.answers = {}
    found = plan_inferenceservice(observed, NOW)
    assert found.status["conditions"] == observed.owner["status"]["conditions"]
    observed.last_answer_at = {"uid-p1": LONG_AGO}
    assert conditions(plan_inferenceservice(observed, NOW).status)["Progressing"] == ("False", "EngineSilent")


def test_an_adapter_that_nobody_confirms_is_reported() -> None:
    observed = with_adapters(with_sidecar("p1"))
    observed.last_answer_at = {"uid-p1": JUST_NOW}
    observed.owner["status"] = plan_inferenceservice(observed, NOW).status
    assert conditions(observed.owner["status"])["Progressing"] == ("False", "Complete")
    observed.answers["uid-p1"]["revision"] = "earlier"
    assert conditions(plan_inferenceservice(observed, NOW).status)["Progressing"] == ("True", "LoadingAdapters")
    observed.last_answer_at = {"uid-p1": LONG_AGO}
    assert conditions(plan_inferenceservice(observed, NOW).status)["Progressing"] == ("False", "EngineSilent")


def test_engines_that_are_not_polled_are_not_reported_as_silent() -> None:
    found = plan_inferenceservice(merged("p1", engine="vllm", apiKeySecret={"name": "k"}), NOW)
    assert conditions(found.status)["Progressing"] == ("False", "Complete")
