"""The Python client on a cluster: train, follow, pull, serve, ask, suspend, resume and delete."""

from pathlib import Path

import pytest
from hone import Client, ClientError, JobFailedError
from hone.kube.cluster import kubeconfig
from hone_api.artifacts.proof import prove
from hone_api.layout import INFERENCESERVICE_LABEL
from hone_command import SERVE_SECONDS, job
from kube import Cluster, condition
from training import ONE_THREAD

ROWS = [{"messages": [{"role": "user", "content": "ping"}, {"role": "assistant", "content": "pong"}]}] * 8
FIELDS = {name: job("any")["spec"][name] for name in ("model", "training", "output", "resources", "pod")}


@pytest.fixture
def client(hone: Cluster, lab: str, monkeypatch: pytest.MonkeyPatch) -> Client:
    # The library reads KUBECONFIG when it is imported.
    monkeypatch.setattr(kubeconfig.kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", hone.env["KUBECONFIG"])
    return Client(namespace=lab)


def test_rows_become_an_answer(hone: Cluster, lab: str, client: Client, tmp_path: Path) -> None:
    trained = client.train(name="notebook", dataset=ROWS, lora={"r": 4}, **FIELDS)
    again = client.train(name="notebook", dataset=ROWS, lora={"r": 4}, **FIELDS)
    seen = list(trained.progress())
    assert [seen[-1].stage, seen[-1].step] == ["Succeeded", 8]
    again.wait()
    assert "</html>" in trained.report().html
    assert any(trained.logs())
    proof = prove(trained.pull(tmp_path / "out"))
    assert proof is not None
    assert proof.manifest.digest == trained.artifact["digest"]

    resources = {"gpus": 0, "shared_memory": "64Mi"}
    with client.serve(trained, resources=resources, pod=ONE_THREAD) as service:
        service.wait(SERVE_SECONDS)
        assert service.chat("ping")
        assert [each.kind for each in service.models()] == ["base", "adapter"]
        service.delete()
    hone.wait_gone("inferenceservice", "notebook", lab)
    hone.wait_pods_gone(f"{INFERENCESERVICE_LABEL}=notebook", lab)
    trained.delete(with_claim=True)
    for kind in ("finetunejob", "configmap", "persistentvolumeclaim"):
        hone.wait_gone(kind, "notebook", lab)


def test_a_job_is_suspended_and_resumed(hone: Cluster, lab: str, client: Client) -> None:
    greedy = client.train(name="waiting", dataset=ROWS, **FIELDS | {"resources": {"gpus": 0, "cpu": "9999"}})
    greedy.suspend()
    hone.wait("finetunejob", "waiting", condition("Suspended"), lab)
    greedy.resume()
    hone.wait("finetunejob", "waiting", condition("Suspended", "False"), lab)
    with pytest.raises(ClientError, match="has no artifact"):
        greedy.pull()
    with pytest.raises(ClientError, match="can't change after creation"):
        client.train(name="waiting", dataset=ROWS, lora={"r": 2}, **FIELDS)
    greedy.delete(with_claim=True)
    hone.wait_gone("finetunejob", "waiting", lab)


def test_a_failure_has_its_reason(client: Client) -> None:
    failing = client.train(name="failing", dataset=[{"words": "x"}], **FIELDS)
    with pytest.raises(JobFailedError) as caught:
        failing.wait()
    assert caught.value.failure == "DatasetColumnMissing"
    failing.delete(with_claim=True)
