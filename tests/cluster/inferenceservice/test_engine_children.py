"""Children of an InferenceService other than Deployment and Service, and the checks before its engine starts."""

import json
from typing import Any

from kube import Cluster, claim
from training import because, message, reasons, uid

Object = dict[str, Any]


def service(name: str, **spec: Any) -> Object:
    """Return a service whose engine never starts, because its image can't be pulled."""
    pod = {"image": "registry.invalid/nothing:1"}
    return {
        "apiVersion": "hone.dev/v1alpha1",
        "kind": "InferenceService",
        "metadata": {"name": name},
        "spec": {"pod": pod, **spec},
    }


def test_a_budget_comes_and_goes_with_the_replicas(hone: Cluster, namespace: str) -> None:
    def change(**spec: Any) -> None:
        patch = json.dumps({"spec": spec})
        hone.kubectl("patch", "inferenceservice", "chat", "--type=merge", "--patch", patch, namespace=namespace)

    hone.create(service("chat", model={"name": "example/model"}, replicas=2), namespace=namespace)
    made = hone.wait("poddisruptionbudget", "chat", bool, namespace)
    assert made["spec"]["maxUnavailable"] == 1
    hone.kubectl("delete", "poddisruptionbudget", "chat", namespace=namespace)
    hone.wait("poddisruptionbudget", "chat", lambda found: uid(found) != uid(made), namespace)
    change(replicas=1)
    hone.wait("poddisruptionbudget", "chat", lambda found: found["spec"]["maxUnavailable"] == 0, namespace)
    change(replicas=0)
    hone.wait_gone("poddisruptionbudget", "chat", namespace)
    hone.wait("deployment", "chat", lambda found: found["spec"]["replicas"] == 0, namespace)


def test_a_missing_artifact_is_named_before_the_engine_starts(hone: Cluster, namespace: str) -> None:
    model = {"claim": {"name": "empty", "path": "nothing"}}
    of_one_node = claim("empty")
    of_one_node["spec"]["accessModes"] = ["ReadWriteOnce"]
    hone.create(of_one_node, service("chat", model=model, engine="vllm", replicas=2), namespace=namespace)
    found = hone.wait("inferenceservice", "chat", because("Progressing", "ArtifactMissing"), namespace)
    assert "/claims/empty/nothing has neither manifest.json nor config.json" in message(found, "Progressing")
    assert reasons(found)["Spreadable"] == "ClaimNotShared"
