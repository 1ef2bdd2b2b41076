"""Kubernetes' scheduler places the pods of the page's example for RDMA by their NICs, on nodes that have them."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from apiserver import api_server, processes
from hone_api.finetunejobs.spec import FineTuneJob
from hone_api.reasons import HoneError
from hone_operator.diagnosis.nodes import ClusterNodes, read_node
from hone_operator.diagnosis.unschedulable import WAIT_REMEDY, explain_unschedulable
from hone_operator.finetunejob import jobs
from kubernetes.client import ApiClient, CoreV1Api
from until import wait_until

PAGE = Path(__file__).parents[3] / "docs/pods.md"
NAMESPACE = "training"
NIC, NICS = "amd.com/nic", 2
# Twice as many GPUs as one pod requests: only the NICs keep a second pod from the node.
ROOM = {"cpu": "128", "memory": "1Ti", "ephemeral-storage": "1Ti", "pods": "110", "amd.com/gpu": "16", NIC: str(NICS)}
READY = {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "ready"}

pytestmark = pytest.mark.filterwarnings("ignore:Unverified HTTPS request")


@pytest.fixture(scope="module")
def client(control_plane: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiClient]:
    with api_server(tmp_path_factory.mktemp("devices")) as server:
        found = server.client()
        core = CoreV1Api(found)
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        core.create_namespace({"metadata": {"name": NAMESPACE, "labels": labels}})
        for name in ("gpu-1", "gpu-2"):
            core.create_node({"metadata": {"name": name}})
            core.patch_node_status(name, {"status": {"capacity": ROOM, "allocatable": ROOM, "conditions": [READY]}})
            # New nodes get the taint "not ready"; the controller that removes it does not run here.
            core.patch_node(name, [{"op": "remove", "path": "/spec/taints"}])
        scheduler: list[object] = [
            server.programs / "kube-scheduler",
            "--kubeconfig",
            server.kubeconfig,
        ]
        with (
            (server.folder / "scheduler.log").open("ab") as log,
            processes([[*scheduler, "--leader-elect=false", "--secure-port=0"]], dict(os.environ), log.fileno()),
        ):
            yield found


def make_pod(core: CoreV1Api, name: str, nics: int = NICS) -> None:
    """Create a pod of the example's Job. Its claim becomes an emptyDir: no controller here binds claims."""
    examples = [yaml.safe_load(part.partition("```")[0]) for part in PAGE.read_text().split("```yaml\n")[1:]]
    [manifest] = [one for one in examples if one["metadata"]["name"] == "rdma"]
    manifest["spec"]["resources"]["limits"][NIC] = nics
    owner = manifest | {"metadata": manifest["metadata"] | {"namespace": NAMESPACE, "uid": "u"}}
    template = jobs.build_train_job(owner, FineTuneJob.model_validate(manifest), "hone:1")["spec"]["template"]
    spec: dict[str, Any] = template["spec"]
    spec["volumes"] = [
        {"name": one["name"], "emptyDir": {}} if "persistentVolumeClaim" in one else one for one in spec["volumes"]
    ]
    core.create_namespaced_pod(NAMESPACE, {"metadata": {"name": name, **template["metadata"]}, "spec": spec})


def read(client: ApiClient, name: str) -> dict[str, Any]:
    found: dict[str, Any] = client.sanitize_for_serialization(CoreV1Api(client).read_namespaced_pod(name, NAMESPACE))
    return found


def unplaced(client: ApiClient, name: str) -> str:
    """Return why the scheduler finds no node; empty before its first try."""
    conditions = read(client, name)["status"].get("conditions") or []
    return next(
        (one["message"] for one in conditions if one["type"] == "PodScheduled" and one["status"] == "False"), ""
    )


def explain(client: ApiClient, name: str) -> HoneError:
    """Return the operator's explanation for a pod without a node."""
    nodes = [client.sanitize_for_serialization(node) for node in CoreV1Api(client).list_node().items]
    facts = ClusterNodes(tuple(read_node(node) for node in nodes))
    return explain_unschedulable(read(client, name), unplaced(client, name), facts)


def test_each_pod_is_placed_where_its_nics_are_and_one_too_many_names_them(client: ApiClient) -> None:
    core = CoreV1Api(client)
    for name in ("train-0", "train-1"):
        make_pod(core, name)
        wait_until(lambda name=name: read(client, name)["spec"].get("nodeName"), 120)  # type: ignore[misc]
    placed = [read(client, name) for name in ("train-0", "train-1")]
    assert {pod["spec"]["nodeName"] for pod in placed} == {"gpu-1", "gpu-2"}
    for pod in placed:
        resources = pod["spec"]["containers"][0]["resources"]
        assert resources["requests"][NIC] == resources["limits"][NIC] == str(NICS)
    make_pod(core, "train-2")
    wait_until(lambda: unplaced(client, "train-2"), 120)
    assert f"Insufficient {NIC}" in unplaced(client, "train-2")
    assert explain(client, "train-2").remedy == WAIT_REMEDY
    make_pod(core, "greedy", nics=2 * NICS)
    wait_until(lambda: unplaced(client, "greedy"), 120)
    assert f"spec.resources.limits.{NIC}" in explain(client, "greedy").remedy
