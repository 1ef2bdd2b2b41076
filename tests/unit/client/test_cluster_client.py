"""The Python client in a cluster: what a stand-in for the API server receives, and what the client returns."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from artifact_cluster import assert_pulled, serve_artifact
from fake_cluster import CORE, DIGEST, HONE, FakeCluster, job, pod, serve, service
from hone import Client, ClientError, InvalidSpecError, JobFailedError
from hone.kube import port_forward
from hone_api.artifacts.manifest import FileDigest, compute_files_digest
from hone_api.reasons import HoneError

ROWS = [{"text": "one"}]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCluster]:
    found = FakeCluster()
    with serve(found, tmp_path, monkeypatch):
        yield found


@pytest.fixture
def with_artifact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCluster]:
    with serve_artifact(tmp_path, monkeypatch) as found:
        yield found


def sent(fake: FakeCluster, method: str) -> list[tuple[str, Any]]:
    return [(path, body) for each, path, body in fake.calls if each == method]


def test_a_job_is_applied_with_its_rows(fake: FakeCluster) -> None:
    found = Client().train(name="faq", model="a/b", dataset=ROWS, training={"max_steps": 3}, backoff_limit=1)
    assert found.name == "faq"
    rows, body, owned = sent(fake, "PATCH")
    name = rows[1]["metadata"]["name"]
    assert rows[0] == owned[0] == f"{CORE}/configmaps/{name}"
    assert body[0] == f"{HONE}/finetunejobs/faq"
    assert body[1]["spec"] == {
        "model": {"name": "a/b"},
        "dataset": {"configMap": {"name": name, "key": "train.jsonl"}},
        "training": {"maxSteps": 3},
        "backoffLimit": 1,
    }
    (owner,) = owned[1]["metadata"]["ownerReferences"]
    assert owner == {"apiVersion": "hone.dev/v1alpha1", "kind": "FineTuneJob", "name": "faq", "uid": f"uid-{body[0]}"}


def test_rows_of_a_refused_job_are_removed(fake: FakeCluster) -> None:
    fake.reply = lambda method, path: 403 if method == "PATCH" and "finetunejobs" in path else None
    with pytest.raises(ClientError, match="failed by the test"):
        Client().train(name="faq", model="a/b", dataset=ROWS)
    ((path, _),) = sent(fake, "DELETE")
    assert path == sent(fake, "PATCH")[0][0]


def test_rows_of_a_job_that_exists_stay_its_own(fake: FakeCluster) -> None:
    fake.add("finetunejobs", job())
    Client().train(name="faq", model="a/b", dataset=ROWS)
    rows, _ = sent(fake, "PATCH")
    assert rows[1]["metadata"]["ownerReferences"][0]["uid"] == "uid-faq"


def test_nothing_is_sent_for_a_spec_that_hone_refuses(fake: FakeCluster) -> None:
    with pytest.raises(InvalidSpecError, match=r"spec\.method"):
        Client().train(model="a/b", dataset=ROWS, method="dpo")
    assert fake.calls == []


def test_a_finished_job_has_its_result(fake: FakeCluster) -> None:
    fake.add("finetunejobs", job(metrics={"trainLoss": 0.5}, progress={"step": 4, "totalSteps": 4, "loss": 0.4}))
    found = Client().job("faq")
    (moment,) = found.progress()
    assert (moment.stage, moment.percent, moment.step, moment.loss) == ("Succeeded", 100, 4, 0.4)
    found.wait()
    assert found.metrics == {"trainLoss": 0.5}
    assert found.artifact["digest"] == DIGEST
    assert repr(found) == "FineTuneJob faq in namespace ns: Succeeded  100%  step 4/4 · loss 0.4000"
    assert DIGEST in found._repr_html_()


def test_a_failed_job_is_an_exception_with_its_reason(fake: FakeCluster) -> None:
    condition = {"type": "Failed", "status": "True", "reason": "OutOfMemory", "message": "Too big. Lower maxLength."}
    fake.add("finetunejobs", job(stage="Failed", conditions=[condition]))
    with pytest.raises(JobFailedError, match=r"OutOfMemory: Too big\. Lower maxLength\.") as caught:
        Client().job("faq").wait()
    assert caught.value.failure == "OutOfMemory"
    assert "Too big" in Client().job("faq")._repr_html_()


def test_objects_are_listed_and_missing_ones_are_named(fake: FakeCluster) -> None:
    fake.add("finetunejobs", job("b"))
    fake.add("finetunejobs", job("a"))
    fake.add("inferenceservices", service())
    client = Client()
    assert [each.name for each in client.jobs()] == ["a", "b"]
    assert [each.name for each in client.services()] == ["chat"]
    with pytest.raises(ClientError, match="FineTuneJob c in namespace ns not found"):
        client.job("c")
    with pytest.raises(ClientError, match="is no name"):
        client.job("../secrets/x")


def test_a_job_is_suspended_resumed_and_deleted(fake: FakeCluster) -> None:
    fake.add("finetunejobs", job(stage="Training"))
    found = Client().job("faq")
    found.suspend()
    fake.objects[f"{HONE}/finetunejobs/faq"]["spec"]["suspend"] = True
    found.resume()
    assert [body["spec"] for _, body in sent(fake, "PATCH")] == [{"suspend": True}, {"suspend": False}]
    found.delete()
    ((path, body),) = sent(fake, "DELETE")
    assert path == f"{HONE}/finetunejobs/faq"
    assert body["preconditions"] == {"uid": "uid-faq"}


def test_waiting_for_a_suspended_job_ends_with_the_remedy(fake: FakeCluster) -> None:
    fake.add("finetunejobs", job(stage="Suspended", spec={"suspend": True}))
    found = Client().job("faq")
    assert [moment.stage for moment in found.progress()] == ["Suspended"]
    with pytest.raises(ClientError, match=r"was stopped before its end.*job\.resume\(\)"):
        found.wait()


def test_logs_have_no_control_characters(fake: FakeCluster) -> None:
    fake.add("finetunejobs", job(stage="Training"))
    fake.add("pods", pod("faq-train-0", "trainer"), CORE)
    fake.logs["faq-train-0"] = [(b"one\n\x1b[2Jtwo\n", None)]
    assert list(Client().job("faq").logs()) == ["one", "\\x1b[2Jtwo"]


def test_an_artifact_and_its_report_are_fetched(with_artifact: FakeCluster, tmp_path: Path) -> None:
    found = Client().job("faq")
    assert found.pull(tmp_path / "out") == tmp_path / "out"
    assert_pulled(tmp_path / "out", with_artifact)
    report = found.report()
    assert report.html == "<h1>faq</h1>"
    assert "sandbox" in report._repr_html_()
    assert "&lt;h1&gt;" in report._repr_html_()
    assert report.save(tmp_path / "r.html").read_text() == report.html
    assert report.save(tmp_path / "r.html")
    (tmp_path / "other.html").write_text("x")
    with pytest.raises(ClientError, match="another file"):
        report.save(tmp_path / "other.html")


def test_a_job_is_served_and_asked(fake: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.add("finetunejobs", job())
    client = Client()
    made = client.serve(client.job("faq"), max_model_len=64)
    ((path, body),) = sent(fake, "PATCH")
    assert path == f"{HONE}/inferenceservices/faq"
    assert body["spec"] == {"model": {"fineTuneJob": {"name": "faq"}}, "maxModelLen": 64}
    open_ports = []

    @contextmanager
    def forward(cluster: Any, name: str) -> Iterator[str]:
        open_ports.append(name)
        yield "http://127.0.0.1:1"
        open_ports.remove(name)

    monkeypatch.setattr(port_forward, "forward_port", forward)
    available = {"type": "Available", "status": "True", "reason": "Ready", "message": ""}
    fake.objects[path]["status"] = {"conditions": [available]}
    with made:
        assert made.url == made.url == "http://127.0.0.1:1/v1"
        assert open_ports == ["faq"]
    assert open_ports == []
    with pytest.raises(ClientError, match="no engine answers"):
        made.chat("hello")


def test_a_service_that_can_not_start_says_why(fake: FakeCluster) -> None:
    conditions = [
        {"type": "Available", "status": "False", "reason": "ModelNotFound", "message": "No such model."},
        {"type": "Stalled", "status": "True", "reason": "ModelNotFound", "message": "No such model."},
    ]
    fake.add("inferenceservices", service(conditions=conditions))
    with pytest.raises(ClientError, match="ModelNotFound: No such model"):
        Client().service("chat").wait()


def test_arguments_of_the_other_place_are_refused(fake: FakeCluster, tmp_path: Path) -> None:
    with pytest.raises(ClientError, match="folder and claims are for jobs on this machine"):
        Client(folder=tmp_path)
    with pytest.raises(ClientError, match="namespace and context belong to a cluster"):
        Client(local=True, namespace="ns")
    assert repr(Client()) == "Client of namespace ns"


def test_nothing_runs_in_an_empty_folder(tmp_path: Path) -> None:
    client = Client(local=True, folder=tmp_path)
    assert client.jobs() == []
    assert client.services() == []
    with pytest.raises(ClientError, match="no FineTuneJob faq in folder"):
        client.job("faq")
    with pytest.raises(ClientError, match="has started no InferenceService"):
        client.service("faq")
    assert list(tmp_path.iterdir()) == []


def test_a_pull_on_this_machine_writes_nothing_outside_its_folder(tmp_path: Path) -> None:
    state, output = tmp_path / ".hone/finetunejobs/faq", tmp_path / "faq"
    state.mkdir(parents=True)
    (state / "finetunejob.yaml").write_text(json.dumps(job()))
    content = {"../outside": b"x", "adapter/adapter_config.json": b"{}"}
    files = {
        name: FileDigest(sha256=hashlib.sha256(data).hexdigest(), size=len(data)) for name, data in content.items()
    }
    summary = {"kind": "adapter", "digest": compute_files_digest(files), "baseModel": "a/b"}
    ended = {"outcome": "Succeeded", "reason": "Succeeded", "message": "done", "artifact": summary}
    (state / "result.json").write_text(json.dumps(ended))
    for name, data in content.items():
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        (output / name).write_bytes(data)
    about = {"baseModel": {"name": "a/b"}, "datasetFingerprint": "x", "metrics": {}, "parameters": {}, "versions": {}}
    listed = {name: found.to_wire() for name, found in files.items()}
    manifest = {
        "kind": "adapter",
        "job": "faq",
        "digest": compute_files_digest(files),
        "files": listed,
        "spec": {},
    } | about
    (output / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(HoneError, match=r"lists the file '\.\./outside', which is no plain path"):
        Client(local=True, folder=tmp_path).job("faq").pull(tmp_path / "here" / "out")
    assert not list((tmp_path / "here").rglob("outside"))
