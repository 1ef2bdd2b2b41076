"""`hone doctor` on a real API server: as an administrator, with few rights, and with the pod of --deep."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import kubernetes
import pytest
from apiserver import ADMIN, ApiServer, api_server
from kubernetes.client import ApiClient

FEW_RIGHTS = "someone"
IMAGE = "registry.invalid/hone-runtime:1"
SECONDS = 120


@pytest.fixture(scope="module")
def server(control_plane: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    folder = tmp_path_factory.mktemp("doctor")
    with api_server(folder, users={FEW_RIGHTS: ()}) as found:
        found.install_crds()
        client = found.client()
        _create_node(client, "gpu-1", {"amd.com/gpu": "8"}, {"amd.com/gpu.device-id": "74a1"})
        _create_operator(client)
        kubernetes.client.StorageV1Api(client).create_storage_class(
            {
                "metadata": {"name": "nfs", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
                "provisioner": "nfs.csi.k8s.io",
            }
        )
        yield found


def _create_node(client: ApiClient, name: str, gpus: dict[str, str], labels: dict[str, str]) -> None:
    core = kubernetes.client.CoreV1Api(client)
    core.create_node({"metadata": {"name": name, "labels": labels}})
    has = {"cpu": "64", "memory": "256Gi", "pods": "110"} | gpus
    ready = [{"type": "Ready", "status": "True", "reason": "KubeletReady", "message": ""}]
    core.patch_node_status(name, {"status": {"capacity": has, "allocatable": has, "conditions": ready}})
    core.patch_node(name, {"spec": {"taints": None}})


def _create_operator(client: ApiClient) -> None:
    core, apps = kubernetes.client.CoreV1Api(client), kubernetes.client.AppsV1Api(client)
    core.create_namespace({"metadata": {"name": "hone-system"}})
    labels = {"app.kubernetes.io/name": "hone", "app.kubernetes.io/version": "0.1.0"}
    env = [{"name": "HONE_RUNTIME_IMAGE", "value": IMAGE}, {"name": "HONE_GPU_GROUPS", "value": "109"}]
    spec = {"containers": [{"name": "operator", "image": "x", "env": env}]}
    metadata = {"name": "hone-operator", "labels": labels}
    template = {"metadata": {"labels": labels}, "spec": spec}
    body = {"metadata": metadata, "spec": {"selector": {"matchLabels": labels}, "template": template}}
    apps.create_namespaced_deployment("hone-system", body)
    status = {"replicas": 1, "updatedReplicas": 1, "readyReplicas": 1, "availableReplicas": 1}
    apps.patch_namespaced_deployment_status("hone-operator", "hone-system", {"status": status})


def start(server: ApiServer, *arguments: str, user: str = ADMIN) -> subprocess.Popen[str]:
    environment = dict(os.environ, KUBECONFIG=str(server.kubeconfig_of(user)), PYTHONWARNINGS="ignore")
    command = [sys.executable, "-m", "hone_cli", "doctor", "--output", "json", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)


def finish(started: subprocess.Popen[str]) -> tuple[int, dict[str, Any], str]:
    out, err = started.communicate(timeout=SECONDS)
    assert out, err
    found = json.loads(out)
    assert found["exitCode"] == started.returncode
    return started.returncode, {each["check"]: each for each in found["checks"]}, err


def pods(server: ApiServer) -> list[Any]:
    found: list[Any] = kubernetes.client.CoreV1Api(server.client()).list_namespaced_pod("default").items
    return found


def await_pod(server: ApiServer, started: subprocess.Popen[str]) -> Any:
    """Return the pod of --deep as soon as it exists."""
    deadline = time.monotonic() + SECONDS
    while not (found := pods(server)):
        assert started.poll() is None, started.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return found[0]


def test_an_administrator_sees_what_is_there(server: ApiServer) -> None:
    code, found, _ = finish(start(server))
    assert code == 0, found
    for check in ("nodes", "gpus", "gpuResources", "gpuHealth", "gpuLabels", "gpuDriver", "storageClass", "operator"):
        assert found[check]["status"] == "ok", found[check]
    assert found["gpus"]["message"] == "8 x MI300X on 1 node"
    assert found["definitions"]["status"] == "ok", found["definitions"]
    assert found["gpuAccess"]["status"] == "unknown"


def test_a_user_without_rights_gets_unknown_and_no_success(server: ApiServer) -> None:
    code, found, _ = finish(start(server, user=FEW_RIGHTS))
    assert code == 2
    for check in ("nodes", "gpus", "gpuDriver", "storageClass", "definitions", "operator"):
        assert found[check]["status"] == "unknown"
    assert "forbidden" in found["nodes"]["message"]


def test_the_pod_of_deep_is_queried_and_deleted(server: ApiServer) -> None:
    kfd = {"path": "/dev/kfd", "mode": 0o660, "owner": 0, "group": 110, "error": 13}
    answer = {"user": 65532, "groups": [65532, 109], "kfd": kfd, "render": [], "driver": None}
    answer |= {"hub": {"status": 200}, "images": {}}

    started = start(server, "--deep")
    pod = await_pod(server, started)
    assert pod.metadata.labels["hone.dev/doctor"] == "true"
    assert pod.spec.security_context.run_as_non_root
    assert pod.spec.security_context.supplemental_groups == [109]
    assert pod.spec.active_deadline_seconds == 600
    assert pod.spec.containers[0].security_context.read_only_root_filesystem
    assert pod.spec.containers[0].resources.limits["amd.com/gpu"] == "1"
    assert {"key": "amd.com/gpu", "operator": "Exists"}.items() <= pod.spec.tolerations[0].to_dict().items()
    ended = {"exitCode": 0, "message": json.dumps(answer)}
    container = {"name": "doctor", "image": IMAGE, "imageID": "", "ready": False, "restartCount": 0}
    status = {"phase": "Succeeded", "containerStatuses": [container | {"state": {"terminated": ended}}]}
    core = kubernetes.client.CoreV1Api(server.client())
    core.patch_namespaced_pod_status(pod.metadata.name, "default", {"status": status})
    code, found, _ = finish(started)
    assert code == 1
    assert "supplementalGroups" in found["gpuAccess"]["remedy"]
    assert "110" in found["gpuAccess"]["remedy"]
    assert found["nodeHub"]["status"] == "ok"
    assert not pods(server)


def test_the_pod_of_deep_is_deleted_after_an_interruption(server: ApiServer) -> None:
    started = start(server, "--deep")
    await_pod(server, started)
    started.send_signal(signal.SIGTERM)
    started.communicate(timeout=SECONDS)
    assert started.returncode not in (0, None)
    assert not pods(server)


def test_the_pod_of_deep_is_deleted_after_its_time(server: ApiServer) -> None:
    code, found, _ = finish(start(server, "--deep", "--timeout", "10"))
    assert code == 2
    assert "Timeout" in found["gpuAccess"]["message"]
    assert not pods(server)
