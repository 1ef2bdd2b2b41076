"""Settings of pods with GPUs, and the report about pods that can't use theirs."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hone_operator.engines.sglang import SglangEngine
from hone_operator.finetunejob import jobs
from hone_operator.finetunejob.plan import plan_finetunejob as plan_job
from hone_operator.inferenceservice.plan import plan_inferenceservice
from hone_operator.main import _parse_arguments
from hone_operator.objects.resources import DEPLOYMENTS
from hone_operator.pods.gpu_access import GpuAccess
from hone_operator.reconcile.plan import Apply
from observed import (
    IMAGE,
    IMAGES,
    NOW,
    conditions,
    failure,
    finished_job,
    job_condition,
    job_object,
    message,
    observed_job,
    observed_service,
    parsed_job,
    pod,
    service_object,
    terminated,
)

Object = dict[str, Any]
GROUPS = GpuAccess((109, 44))
REQUIRED = {"HONE_REQUIRED_GPUS": "2", "HONE_GPU_RESOURCE": "amd.com/cpx_nps4"}
TWO: Object = {"gpus": 2, "gpuResource": "amd.com/cpx_nps4"}


def variables(container: Object) -> dict[str, str]:
    return {each["name"]: each["value"] for each in container["env"] if "value" in each}


def pod_of_trainer(access: GpuAccess, **spec: Any) -> Object:
    owner = job_object(**spec)
    found: Object = jobs.build_train_job(owner, parsed_job(owner), IMAGE, access)["spec"]["template"]["spec"]
    return found


def test_a_trainer_with_gpus_requires_them_and_has_the_groups() -> None:
    found = pod_of_trainer(GROUPS, resources=TWO, pod={"supplementalGroups": [44, 7]})
    assert variables(found["containers"][0]).items() >= REQUIRED.items()
    assert found["securityContext"]["supplementalGroups"] == [44, 7, 109]


def test_pods_without_gpus_have_neither_requirement_nor_groups() -> None:
    owner = job_object(resources=TWO)
    prepare = jobs.build_prepare_job(owner, parsed_job(owner), IMAGE, None)["spec"]["template"]["spec"]
    for found in (prepare, pod_of_trainer(GROUPS, resources={"gpus": 0})):
        assert not REQUIRED.keys() & variables(found["containers"][0]).keys()
        assert found["securityContext"]["supplementalGroups"] == []


def test_users_and_administrators_can_switch_the_requirement_off() -> None:
    env = [{"name": "HONE_REQUIRED_GPUS", "value": "0"}]
    found = pod_of_trainer(GpuAccess(), resources=TWO, pod={"env": env})
    assert variables(found["containers"][0])["HONE_REQUIRED_GPUS"] == "0"
    found = pod_of_trainer(GpuAccess(are_required=False), resources=TWO)
    assert not REQUIRED.keys() & variables(found["containers"][0]).keys()


def engine_pod(engine: str, access: GpuAccess, **spec: Any) -> Object:
    observed = observed_service(service_object(engine=engine, **spec), finished_job(kind="merged"))
    observed.images = replace(IMAGES, gpu_access=access)
    [made] = [
        each
        for each in plan_inferenceservice(observed, NOW).actions
        if isinstance(each, Apply) and each.resource is DEPLOYMENTS
    ]
    return dict(made.body["spec"]["template"]["spec"])


@pytest.mark.parametrize("engine", ["embedded", "vllm", "sglang", "tgi"])
def test_an_engine_with_gpus_requires_them_and_has_the_groups(engine: str) -> None:
    found = engine_pod(engine, GROUPS, resources=TWO)
    containers = [found["containers"][0], *(one for one in found.get("initContainers", []) if one["name"] == "check")]
    assert len(containers) == (2 if engine == "vllm" else 1)
    for container in containers:
        assert variables(container).items() >= REQUIRED.items()
        assert container["resources"]["limits"]["amd.com/cpx_nps4"] == "2"
    assert found["securityContext"]["supplementalGroups"] == [109, 44]
    without = engine_pod(engine, GROUPS, resources={"gpus": 0})
    assert not REQUIRED.keys() & variables(without["containers"][0]).keys()
    assert without["securityContext"]["supplementalGroups"] == []


def test_a_trainer_that_can_not_use_its_gpus_ends_the_job_at_once() -> None:
    words = "The pod asks for 1 amd.com/gpu (spec.resources.gpus), and the container has no /dev/kfd. Do this."
    ended = pod(terminated=terminated(69, failure("GpuNotUsable", words)))
    owner = job_object(resources={"gpus": 1}, backoffLimit=6)
    rules = pod_rules(owner)
    assert {"FailJob": [64, 65, 66, 67, 68, 69]}.items() <= rules.items()
    observed = observed_job(owner, ended, job_conditions=[job_condition("Failed", "PodFailurePolicy")])
    found = plan_job(observed, NOW)
    assert conditions(found.status)["Failed"] == ("True", "GpuNotUsable")
    assert message(found.status, "Failed") == words
    assert conditions(found.status)["Stalled"] == ("True", "GpuNotUsable")


def pod_rules(owner: Object) -> dict[str, list[int]]:
    rules = jobs.build_train_job(owner, parsed_job(owner), IMAGE)["spec"]["podFailurePolicy"]["rules"]
    return {rule["action"]: rule["onExitCodes"]["values"] for rule in rules if "onExitCodes" in rule}


def running_service(engine: str, gpus: int, words: str) -> Any:
    crashed = pod(container="engine", waiting={"reason": "CrashLoopBackOff"})
    [status] = crashed["status"]["containerStatuses"]
    status |= {"restartCount": 1, "lastState": {"terminated": {"exitCode": 1, "reason": "Error", "message": words}}}
    observed = observed_service(service_object(engine=engine, resources={"gpus": gpus}), finished_job(kind="merged"))
    observed.pods = [crashed]
    return plan_inferenceservice(observed, NOW)


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        ("vllm", "RuntimeError: Failed to infer device type, please set the environment variable VLLM_LOGGING_LEVEL"),
        ("vllm", "RuntimeError: Device string must not be empty"),
        ("sglang", "RuntimeError: No accelerator (CUDA, XPU, HPU, NPU, MUSA, MPS) or platform plugin is available."),
        ("sglang", "RuntimeError: No HIP GPUs are available\n"),
        ("tgi", "Unable to open /dev/kfd read-write: Permission denied\nroot is member of group"),
        ("embedded", "hone-server: GpuNotUsable: The pod asks for 1 amd.com/gpu, and there is no /dev/kfd. Do this."),
    ],
)
def test_an_engine_without_a_usable_gpu_is_reported_after_its_first_exit(engine: str, words: str) -> None:
    found = running_service(engine, 1, f"Traceback\n{words}")
    assert conditions(found.status)["Progressing"] == ("False", "GpuNotUsable")
    assert conditions(found.status)["Stalled"] == ("True", "GpuNotUsable")


def test_sglang_starts_without_the_folders_of_path_that_its_user_can_not_enter(tmp_path: Path) -> None:
    fake = tmp_path / "bin/python3"
    fake.parent.mkdir()
    fake.write_text('#!/bin/sh\necho "$PATH" "$@"\n')
    fake.chmod(0o755)
    closed = tmp_path / "closed"  # a file that can't be executed: root, who may run this test, can enter any folder
    closed.touch()
    command = [sys.executable, *SglangEngine.command[1:], "--port", "8001"]
    environ = {"PATH": f"{closed}:{fake.parent}:{tmp_path}/missing"}
    found = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    assert found.stdout == f"{fake.parent} -m sglang.launch_server --port 8001\n"


def test_an_engine_that_requests_no_gpu_is_not_reported() -> None:
    found = running_service("embedded", 0, "RuntimeError: No HIP GPUs are available")
    assert conditions(found.status)["Progressing"][1] != "GpuNotUsable"


def test_the_command_line_has_the_settings_of_the_chart(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = _parse_arguments(["--runtime-image", "i"])
    assert (arguments.gpu_groups, arguments.require_gpus) == ([], True)
    monkeypatch.setenv("HONE_GPU_GROUPS", "109, 44")
    monkeypatch.setenv("HONE_REQUIRE_GPUS", "false")
    arguments = _parse_arguments(["--runtime-image", "i"])
    assert (arguments.gpu_groups, arguments.require_gpus) == ([109, 44], False)
    for wrong in (["--gpu-groups", "render"], ["--require-gpus", "maybe"]):
        with pytest.raises(SystemExit):
            _parse_arguments(["--runtime-image", "i", *wrong])
