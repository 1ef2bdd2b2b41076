"""`hone watch` and `hone chat` on a cluster: live progress, endings, and the port-forward to an engine."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kube import Cluster, Images, claim, condition, pod

Object = dict[str, Any]
TRAIN_SECONDS = 600
SERVE_SECONDS = 480
ROW = {"messages": [{"role": "user", "content": "ping"}, {"role": "assistant", "content": "pong"}]}


@pytest.fixture(scope="module")
def lab(hone: Cluster, images: Images) -> Iterator[str]:
    """Yield a namespace with a tiny model on the claim `models` and a dataset in the ConfigMap `rows`."""
    with hone.fresh_namespace("cli") as namespace:
        data = {"train.jsonl": f"{json.dumps(ROW)}\n" * 8}
        rows = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "rows"}, "data": data}
        hone.create(claim("models"), rows, namespace=namespace)
        script = (Path(__file__).parent / "make_model.py").read_text()
        maker = pod("make", images.runtime, "python3", "-c", script, "/models/tiny", claims={"models": "/models"})
        hone.run_pod(maker, namespace)
        yield namespace


def job(name: str, **spec: Any) -> Object:
    found = {
        "model": {"claim": {"name": "models", "path": "tiny"}},
        "dataset": {"configMap": {"name": "rows", "key": "train.jsonl"}},
        "training": {"maxSteps": 8, "perDeviceTrainBatchSize": 2, "loggingSteps": 1},
        "output": {"storage": {"size": "1Gi"}},
        "resources": {"gpus": 0, "sharedMemory": "64Mi"},
    }
    metadata = {"name": name}
    return {"apiVersion": "hone.dev/v1alpha1", "kind": "FineTuneJob", "metadata": metadata, "spec": found | spec}


def service(name: str, job_name: str) -> Object:
    spec = {"model": {"fineTuneJob": {"name": job_name}}, "resources": {"gpus": 0, "sharedMemory": "64Mi"}}
    metadata = {"name": name}
    return {"apiVersion": "hone.dev/v1alpha1", "kind": "InferenceService", "metadata": metadata, "spec": spec}


def start(cluster: Cluster, *arguments: str) -> subprocess.Popen[str]:
    """Start the hone command as a user of this cluster."""
    command = [sys.executable, "-m", "hone_cli", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=cluster.env, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def run(cluster: Cluster, *arguments: str, stdin: str = "", timeout: float = 120) -> tuple[int, str, str]:
    """Run the hone command. Return exit code, stdout and stderr."""
    with start(cluster, *arguments) as started:
        try:
            out, err = started.communicate(stdin, timeout=timeout)
        finally:
            started.kill()
    return started.returncode, out, err


def test_a_job_is_watched_to_its_artifact_and_its_model_talked_to(hone: Cluster, lab: str) -> None:
    hone.create(job("faq"), service("chat", "faq"), namespace=lab)

    code, out, err = run(hone, "watch", "faq", "--namespace", lab, timeout=TRAIN_SECONDS)
    assert code == 0, out + err
    done = hone.get("finetunejob", "faq", lab)
    assert done is not None
    assert "✓ faq succeeded" in out
    assert done["status"]["artifact"]["digest"] in out
    assert "trainLoss" in out

    hone.wait("inferenceservice", "chat", condition("Available"), lab, timeout=SERVE_SECONDS)
    code, out, err = run(hone, "chat", "chat", "-n", lab, "--message", "ping")
    assert code == 0, err
    assert out.strip()
    assert "Model: faq (also there: tiny)" in err
    code, out, err = run(hone, "chat", "chat", "-n", lab, "--model", "tiny", stdin="ping\n/models\n/exit\n")
    assert code == 0, err
    assert out.strip()
    assert "* tiny (base)\n  faq (adapter)\n" in err


def test_the_failure_of_a_watched_job_is_printed_with_a_remedy(hone: Cluster, lab: str) -> None:
    dataset = {"configMap": {"name": "rows", "key": "train.jsonl"}, "format": "text", "columns": {"text": "body"}}
    hone.create(job("wrong", dataset=dataset), namespace=lab)
    code, out, err = run(hone, "watch", "wrong", "-n", lab, timeout=TRAIN_SECONDS)
    assert code == 1, err
    assert "✗ wrong failed: DatasetColumnMissing: " in out
    assert "Name a column that the dataset has" in out


def test_the_wait_and_the_deletion_of_a_watched_job_are_printed(hone: Cluster, namespace: str) -> None:
    hone.create(
        job("greedy", model={"name": "a/b"}, resources={"gpus": 0, "cpu": "9999"}),
        namespace=namespace,
    )
    with start(hone, "watch", "greedy", "-n", namespace) as watching:
        try:
            assert watching.stdout is not None
            assert any("Unschedulable: " in line for line in watching.stdout)
            hone.kubectl("delete", "finetunejob", "greedy", namespace=namespace)
            _, err = watching.communicate(timeout=60)
        finally:
            watching.kill()
    assert watching.returncode == 1
    assert "FineTuneJob greedy was deleted" in err
    assert "Traceback" not in err


def test_an_unavailable_service_is_reported_with_its_reason(hone: Cluster, namespace: str) -> None:
    hone.create(service("early", "never"), namespace=namespace)
    hone.wait("inferenceservice", "early", condition("ArtifactsResolved", "False"), namespace)
    code, out, err = run(hone, "chat", "early", "-n", namespace, "--message", "ping")
    assert (code, out) == (1, "")
    assert "InferenceService early is not available" in err
    assert "never" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["watch", "nobody"], "FineTuneJob nobody in namespace {namespace} not found"),
        (["chat", "nobody"], "InferenceService nobody in namespace {namespace} not found"),
    ],
)
def test_a_missing_object_is_named(hone: Cluster, namespace: str, arguments: list[str], message: str) -> None:
    code, _, err = run(hone, *arguments, "-n", namespace)
    assert code == 1
    assert message.format(namespace=namespace) in err
    assert "Traceback" not in err


def test_a_context_that_is_not_in_the_kubeconfig_is_named(cluster: Cluster) -> None:
    code, _, err = run(cluster, "watch", "faq", "--context", "nowhere")
    assert code == 1
    assert "nowhere" in err
    assert "Traceback" not in err
