"""Run the kubectl commands of remedies, exactly as they are printed, on a real API server: they fix the fault.

The default namespace differs from that of the objects, as for most users.
"""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from apiserver import ApiServer, api_server
from hone_api.layout import FINETUNEJOB_LABEL, INFERENCESERVICE_LABEL, MANAGED_BY_LABEL, MANAGER
from hone_api.reasons import API_FAILING, CHILD_CONTESTED, DISK_FULL, POD_REJECTED, VOLUME_NOT_BOUND
from hone_operator.diagnosis.node_fit import PodRequirements, find_unmet_requirements
from hone_operator.diagnosis.nodes import ClusterNodes, read_node
from hone_operator.diagnosis.pod_failure import explain_pod_failure
from hone_operator.finetunejob import output_claims
from hone_operator.inferenceservice import rollouts
from hone_operator.kube.retention import Unknown
from hone_operator.reconcile import ownership

sys.path.append(str(Path(__file__).parents[2] / "unit"))

from observed import NOW, failure, job_object, parsed_job, terminated
from observed import pod as pod_in_state
from remedy_world import alive, crashing, crowded, near_volume, uninstalled

Object = dict[str, Any]
Kubectl = Callable[..., str]
TEAM = "team"
COMMAND = re.compile(r"`(kubectl [^`]+)`|(kubectl get [^`]+)$")
POD = {"containers": [{"name": "c", "image": "none"}]}
TEMPLATE = {"metadata": {"labels": {"app": "x"}}, "spec": POD}


@pytest.fixture(scope="module")
def server(control_plane: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with api_server(tmp_path_factory.mktemp("typed")) as found:
        yield found


@pytest.fixture(scope="module")
def kubectl(server: ApiServer) -> Kubectl:
    """Return a function that runs a command line as a user types it, and returns its output."""

    def run(line: str, *, given: Object | None = None, **environment: str) -> str:
        program, *arguments = shlex.split(line)
        assert program == "kubectl"
        variables = {**os.environ, "KUBECONFIG": str(server.kubeconfig), **environment}
        entered = yaml.safe_dump(given) if given else ""
        done = subprocess.run(
            [server.programs / "kubectl", *arguments], env=variables, input=entered, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{line}: {done.stderr}"
        return done.stdout + done.stderr

    run(f"kubectl create namespace {TEAM}")
    return run


def make(kubectl: Kubectl, kind: str, name: str, api: str = "v1", **fields: Any) -> None:
    """Create an object in the team's namespace or in the cluster, with the status that a controller would write."""
    metadata = {"name": name, "namespace": TEAM, **fields.pop("metadata", {})}
    body = {"apiVersion": api, "kind": kind, "metadata": metadata, **fields}
    kubectl("kubectl create --filename -", given=body)
    if "status" in fields:
        kubectl("kubectl apply --server-side --force-conflicts --subresource status --filename -", given=body)


def get(kubectl: Kubectl, kind: str, name: str) -> Object:
    found: Object = yaml.safe_load(kubectl(f"kubectl get {kind} {name} --namespace {TEAM} --output yaml"))
    return found


def command_of(remedy: str) -> str:
    """Return the first command that the remedy prints."""
    found = COMMAND.search(remedy)
    assert found, remedy
    return found[1] or found[2]


def is_there(kubectl: Kubectl, kind: str, name: str) -> bool:
    return bool(kubectl(f"kubectl get {kind} {name} --namespace {TEAM} --ignore-not-found"))


@pytest.mark.parametrize("how", ["ClaimDiffers", "DiskFull"])
def test_a_claim_is_enlarged(kubectl: Kubectl, how: str) -> None:
    name, kind = f"faq-{how.lower()}", f"grows-{how.lower()}"
    make(kubectl, "StorageClass", kind, "storage.k8s.io/v1", provisioner="a/b", allowVolumeExpansion=True)
    spec = {"accessModes": ["ReadWriteOnce"], "storageClassName": kind, "volumeName": "v"}
    make(
        kubectl,
        "PersistentVolumeClaim",
        name,
        spec=spec | {"resources": {"requests": {"storage": "1Gi"}}},
        status={"phase": "Bound", "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"]},
    )
    job = parsed_job(job_object(name, output={"storage": {"size": "5Gi"}}))
    error = output_claims.compare_claim(get(kubectl, "pvc", name), job)
    assert error
    remedy = error.remedy if how == "ClaimDiffers" else full(name)
    kubectl(command_of(remedy).replace("SIZE", "5Gi"))
    assert output_claims.compare_claim(get(kubectl, "pvc", name), job) is None


def full(claim: str) -> str:
    """Return the report about a trainer whose claim is full."""
    message = failure("DiskFull", f"/output has no space left. {DISK_FULL.remedy}")
    pod = pod_in_state(terminated=terminated(74, message))
    pod["spec"]["volumes"] = [{"name": "output", "persistentVolumeClaim": {"claimName": claim}}]
    pod["spec"]["containers"][0]["volumeMounts"] = [{"name": "output", "mountPath": "/output"}]
    found = explain_pod_failure(pod, "trainer")
    assert found
    return found.message


def test_the_command_for_an_unbound_claim_describes_it(kubectl: Kubectl) -> None:
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    make(kubectl, "PersistentVolumeClaim", "unbound", spec=spec | {"storageClassName": "nope"})
    line = command_of(VOLUME_NOT_BOUND.remedy).replace("NAME", "unbound")
    assert "nope" in kubectl(f"{line} --namespace {TEAM}")


def test_a_node_is_uncordoned_described_and_deleted(kubectl: Kubectl) -> None:
    make(kubectl, "Node", "gpu-1", spec={"unschedulable": True})

    def node() -> Any:
        return read_node(get(kubectl, "node", "gpu-1"))

    described, uncordoned = (command_of(each.remedy) for each in find_unmet_requirements(node(), PodRequirements()))
    assert "gpu-1" in kubectl(described)
    kubectl(uncordoned)
    assert not node().is_cordoned
    lost = alive(node())
    assert lost
    kubectl(command_of(lost.remedy).replace("NODE", node().name))
    assert not is_there(kubectl, "node", "gpu-1")
    assert "gone" in str(alive(ClusterNodes(()).find_node("gpu-1")))


def test_a_node_is_cordoned(kubectl: Kubectl) -> None:
    make(kubectl, "Node", "gpu-2")
    kubectl(command_of(POD_REJECTED.remedy).replace("NODE", "gpu-2"))
    assert read_node(get(kubectl, "node", "gpu-2")).is_cordoned


def test_a_paused_deployment_is_resumed(kubectl: Kubectl) -> None:
    spec = {"paused": True, "selector": {"matchLabels": {"app": "x"}}, "template": TEMPLATE}
    make(kubectl, "Deployment", "chat", "apps/v1", spec=spec, status={"observedGeneration": 1})
    error = rollouts.explain_pause(get(kubectl, "deployment", "chat"))
    assert error
    kubectl(command_of(error.remedy))
    assert rollouts.explain_pause(get(kubectl, "deployment", "chat")) is None


def test_a_finalizer_is_taken_out(kubectl: Kubectl) -> None:
    make(kubectl, "Job", "faq-train", "batch/v1", metadata={"finalizers": ["a.example.com/b"]},
         spec={"template": {"spec": POD | {"restartPolicy": "Never"}}})  # fmt: skip
    kubectl(f"kubectl delete job faq-train --namespace {TEAM} --wait=false --cascade=background")
    job = get(kubectl, "job", "faq-train")
    job["metadata"]["deletionTimestamp"] = "2026-03-01T10:00:00Z"
    error = ownership.explain_leaving([job], job_object(), NOW)
    assert error
    shown = error.remedy.partition("See: ")[2]
    assert "a.example.com/b" in kubectl(shown)
    edit = shown.replace("kubectl get", command_of(error.remedy)).replace(" --output yaml", "")
    kubectl(edit, KUBE_EDITOR="sed -i /a.example.com/d")
    assert not is_there(kubectl, "job", "faq-train")


def test_the_writers_of_a_contested_child_are_shown(kubectl: Kubectl) -> None:
    make(kubectl, "ConfigMap", "contested", data={"a": "1"})
    kubectl(f"kubectl annotate configmap contested --namespace {TEAM} --field-manager argocd a=b")
    line = command_of(CHILD_CONTESTED.remedy).replace("KIND NAME", "ConfigMap contested")
    assert "argocd" in kubectl(f"{line} --namespace {TEAM}")


def test_the_log_of_an_engine_that_crashes_is_asked_for(kubectl: Kubectl) -> None:
    make(kubectl, "Pod", "chat-1", spec={"containers": [{"name": "engine", "image": "none"}]})
    error = crashing(True)
    assert error
    kubectl(error.remedy.partition(": ")[2])


def test_webhooks_are_listed(kubectl: Kubectl) -> None:
    kubectl(command_of(API_FAILING.remedy))


def test_volumes_are_listed_with_claim_and_node(kubectl: Kubectl) -> None:
    terms = {"nodeSelectorTerms": [{"matchExpressions": [{"key": "zone", "operator": "In", "values": ["zone-b"]}]}]}
    spec = {
        "capacity": {"storage": "1Gi"},
        "accessModes": ["ReadWriteOnce"],
        "csi": {"driver": "d", "volumeHandle": "h"},
        "claimRef": {"namespace": TEAM, "name": "faq"},
        "nodeAffinity": {"required": terms},
    }
    make(kubectl, "PersistentVolume", "v1", spec=spec)
    error = near_volume((0, 8, 8))
    assert error
    line = next(each.split() for each in kubectl(command_of(error.remedy)).splitlines() if "zone-b" in each)
    assert line[:2] == [TEAM, "faq"]


def test_the_pods_of_others_are_listed(kubectl: Kubectl) -> None:
    labels = {MANAGED_BY_LABEL: MANAGER, FINETUNEJOB_LABEL: "faq"}
    make(kubectl, "Pod", "foreign", metadata={"labels": labels}, spec=POD)
    make(kubectl, "Pod", "unrelated", spec=POD)
    error = crowded(Unknown(0, 3))
    assert error
    found = kubectl(command_of(error.remedy))
    assert "foreign" in found
    assert "unrelated" not in found


@pytest.mark.parametrize("namespaces", [[""], [TEAM]])
def test_the_budgets_that_an_uninstallation_left_are_deleted(kubectl: Kubectl, namespaces: list[str]) -> None:
    for name, labels in (("chat", {MANAGED_BY_LABEL: MANAGER, INFERENCESERVICE_LABEL: "chat"}), ("others", {})):
        if not is_there(kubectl, "pdb", name):
            spec = {"maxUnavailable": 0, "selector": {"matchLabels": {"app": "x"}}}
            make(kubectl, "PodDisruptionBudget", name, "policy/v1", metadata={"labels": labels}, spec=spec)
    error = uninstalled(namespaces)
    assert error
    kubectl(error.remedy.partition(": ")[2])
    assert not is_there(kubectl, "pdb", "chat")
    assert is_there(kubectl, "pdb", "others")
