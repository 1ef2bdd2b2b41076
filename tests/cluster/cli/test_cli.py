"""`hone watch` and `hone chat` on a cluster: live progress, endings, and the port-forward to an engine."""

import pytest
from hone_command import SERVE_SECONDS, TRAIN_SECONDS, job, run, service, start
from kube import Cluster, condition


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
            _, err = watching.communicate(timeout=120)
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
