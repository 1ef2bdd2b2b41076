"""Pod settings above the installation's Pod Security level are refused before a pod is created."""

from dataclasses import replace
from typing import Any

import pytest
from hone_api.pods.pod_options import PodOptions
from hone_operator.finetunejob.plan import plan_finetunejob as plan_job
from hone_operator.finetunejob.snapshot import ObservedFineTuneJob
from hone_operator.inferenceservice.plan import plan_inferenceservice
from hone_operator.main import _parse_arguments
from hone_operator.objects.resources import DEPLOYMENTS
from hone_operator.pods.pod_levels import LEVELS, explain_relaxations, find_relaxations
from hone_operator.reconcile.plan import Apply
from observed import (
    IMAGE,
    IMAGES,
    NOW,
    conditions,
    finished_job,
    job_object,
    message,
    observed_job,
    observed_service,
    parsed_job,
    pod,
    service_object,
)
from pod_level_cases import CASES, Object

TGI = "ghcr.io/huggingface/text-generation-inference:3.3.5-rocm"
NETWORK: Object = {"hostNetwork": True}


@pytest.mark.parametrize(("options", "needed"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_a_setting_is_refused_below_the_level_that_it_needs(options: Object, needed: str) -> None:
    parsed = PodOptions.model_validate(options)
    refused = [level for level in LEVELS if explain_relaxations(parsed, level)]
    assert refused == list(LEVELS[: LEVELS.index(needed)])


def test_the_refusal_names_all_fields_their_values_and_the_level_that_allows_them() -> None:
    lock: Object = {"runAsUser": 0, "runAsNonRoot": False, "capabilities": {"add": ["IPC_LOCK"]}}
    error = explain_relaxations(PodOptions.model_validate({**NETWORK, "containerSecurityContext": lock}), "baseline")
    assert error
    assert error.message == (
        "spec.pod.hostNetwork is true, which needs level privileged; "
        "spec.pod.containerSecurityContext.capabilities.add is IPC_LOCK, which needs level privileged; pods of Hone "
        "may have level baseline (the chart's value runtime.podSecurityLevel)"
    )
    assert error.remedy.endswith("let whoever runs Hone set runtime.podSecurityLevel: privileged.")


def test_hones_own_pods_need_only_the_level_restricted() -> None:
    assert find_relaxations(PodOptions()) == []


def test_no_job_is_made_above_the_level() -> None:
    owner = job_object(pod=NETWORK)
    found = plan_job(ObservedFineTuneJob(owner, parsed_job(owner), IMAGE), NOW)
    assert found.actions == []
    assert conditions(found.status)["Accepted"] == ("False", "InvalidSpec")
    assert conditions(found.status)["Stalled"] == ("True", "InvalidSpec")
    assert "spec.pod.hostNetwork is true" in message(found.status, "Accepted")
    allowed = plan_job(ObservedFineTuneJob(owner, parsed_job(owner), IMAGE, pod_level="privileged"), NOW)
    assert len(allowed.actions) == 3


def test_a_trainer_that_was_made_before_the_level_was_lowered_continues() -> None:
    running = observed_job(job_object(pod=NETWORK), pod(running={"startedAt": "2026-03-01T11:00:00Z"}))
    found = plan_job(running, NOW)
    assert conditions(found.status)["Accepted"][0] == "True"
    assert conditions(found.status)["Running"] == ("True", "TrainerRunning")


def test_an_edit_above_the_level_leaves_the_running_trainer_alone() -> None:
    running = observed_job(job_object(), pod(running={"startedAt": "2026-03-01T11:00:00Z"}))
    running.owner = job_object(pod=NETWORK)
    running.spec = parsed_job(running.owner)
    found = plan_job(running, NOW)
    assert found.actions == []
    assert conditions(found.status)["Accepted"] == ("False", "InvalidSpec")
    assert conditions(found.status)["Running"] == ("True", "InvalidSpec")


def made(level: str = "restricted", image: str = TGI, **spec: Any) -> tuple[Object | None, Object]:
    """Return the engine's pod of a service with engine tgi, None where there is none, and the status."""
    observed = observed_service(service_object(engine="tgi", **spec), finished_job(kind="merged"))
    observed.images = replace(IMAGES, engines=IMAGES.engines | {"tgi": image}, level=level)
    found = plan_inferenceservice(observed, NOW)
    pods = [
        each.body["spec"]["template"]["spec"]
        for each in found.actions
        if isinstance(each, Apply) and each.resource is DEPLOYMENTS
    ]
    return (pods[0] if pods else None), found.status


def test_no_engine_is_made_above_the_level() -> None:
    found, status = made(image="tgi:1", pod=NETWORK)
    assert found is None
    assert conditions(status)["Accepted"] == ("False", "InvalidSpec")
    assert made(level="privileged", image="tgi:1", pod=NETWORK)[0]


def test_an_image_that_starts_only_as_root_is_refused_where_no_pod_may() -> None:
    found, status = made()
    assert found is None
    assert conditions(status)["Accepted"] == ("False", "InvalidSpec")
    said = message(status, "Accepted")
    assert TGI in said
    assert "runtime.podSecurityLevel: baseline" in said


def test_an_image_that_starts_only_as_root_gets_only_user_root_where_pods_may_have_it() -> None:
    found, status = made(level="baseline")
    assert found
    assert conditions(status)["Accepted"][0] == "True"
    [engine] = found["containers"]
    assert engine["securityContext"] == {
        "runAsUser": 0,
        "runAsNonRoot": False,
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert found["securityContext"]["runAsUser"] == 65532
    others = [one["securityContext"] for one in found["initContainers"]]
    assert others
    assert not any("runAsUser" in one for one in others)


@pytest.mark.parametrize(
    ("image", "is_root"),
    [
        ("ghcr.io/huggingface/text-generation-inference@sha256:1", True),
        ("mirror.example.com:5000/text-generation-inference", True),
        ("example.com/my-text-generation-inference:1", False),
        ("example.com/text-generation-inference-nonroot:1", False),
    ],
)
def test_the_images_that_start_only_as_root_are_known_by_their_names(image: str, is_root: bool) -> None:
    found, _ = made(level="baseline", image=image)
    assert found
    assert ("runAsUser" in found["containers"][0]["securityContext"]) == is_root


def test_a_user_who_changed_the_image_sets_its_user() -> None:
    found, _ = made(pod={"securityContext": {"runAsUser": 1000}})
    assert found
    assert "runAsUser" not in found["containers"][0]["securityContext"]
    assert found["securityContext"]["runAsUser"] == 1000


def test_the_command_line_has_the_level_that_the_chart_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _parse_arguments(["--runtime-image", "i"]).pod_security_level == "restricted"
    monkeypatch.setenv("HONE_POD_SECURITY_LEVEL", "privileged")
    assert _parse_arguments(["--runtime-image", "i"]).pod_security_level == "privileged"
    with pytest.raises(SystemExit):
        _parse_arguments(["--runtime-image", "i", "--pod-security-level", "open"])
