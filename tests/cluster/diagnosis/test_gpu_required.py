"""With the chart's defaults, a job and an engine whose GPU is missing fail with a reason."""

import os
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import ROOT
from kube import SYSTEM, Cluster, Images, condition, pod, run
from training import because, furnish, job, message, reasons
from until import wait_until

Object = dict[str, Any]
ONE_GPU = {"gpus": 1, "sharedMemory": "64Mi"}
GPU = "amd.com/gpu"


@pytest.fixture
def strict(hone: Cluster) -> Iterator[Cluster]:
    """Yield the cluster with Hone's default of requiring GPUs; other tests switch that off."""
    if os.environ.get("HONE_TEST_KUBECONFIG"):
        pytest.skip("NOT RUN: the GPUs of another cluster may be real")

    def upgrade(value: str) -> None:
        helm = ["helm", "upgrade", "hone", f"{ROOT}/charts/hone", "--namespace", SYSTEM, "--reset-then-reuse-values"]
        run(*helm, "--set", f"runtime.requireGpus={value}", "--wait", "--timeout=180s", env=hone.env, timeout=240)
        # The operator that is replaced may lead until its end.
        of_operator = "app.kubernetes.io/component=operator"
        wait_until(lambda: len(hone.list("pods", SYSTEM, of_operator)) == 1)

    upgrade("true")
    yield hone
    upgrade("false")


def test_a_pod_whose_gpu_is_missing_fails_with_a_reason(strict: Cluster, images: Images, namespace: str) -> None:
    furnish(strict, images, namespace)
    strict.create(job("blind", resources=ONE_GPU, backoffLimit=6), namespace=namespace)
    failed, succeeded = condition("Failed"), condition("Succeeded")
    found = strict.wait("finetunejob", "blind", failed, namespace, timeout=300, unless=succeeded)
    assert reasons(found)["Failed"] == "GpuNotUsable"
    words = "The pod asks for 1 amd.com/gpu (spec.resources.gpus), and the container has no /dev/kfd. Make sure that"
    assert message(found, "Failed").startswith(words)
    # No retry, and all of the node's GPUs are free again.
    pods = strict.list("pods", namespace, "hone.dev/finetunejob=blind,app.kubernetes.io/component=trainer")
    assert [each["status"]["phase"] for each in pods] == ["Failed"]
    amount = max(int(node["status"]["allocatable"].get(GPU, 0)) for node in strict.list("nodes"))
    strict.run_pod(pod("all", images.operator, "true", resources={"limits": {GPU: amount}}), namespace)

    service = {
        "apiVersion": "hone.dev/v1alpha1",
        "kind": "InferenceService",
        "metadata": {"name": "blind"},
        "spec": {
            "engine": "embedded",
            "model": {"claim": {"name": "models", "path": "tiny"}},
            "resources": ONE_GPU,
        },
    }
    strict.create(service, namespace=namespace)
    found = strict.wait("inferenceservice", "blind", because("Progressing", "GpuNotUsable"), namespace)
    assert "no /dev/kfd" in message(found, "Progressing")
    assert reasons(found)["Stalled"] == "GpuNotUsable"
