"""`hone pull` and `hone report` as commands, against a fake API server whose pods run the real script."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from artifact_cluster import assert_pulled, run, serve_artifact, start
from fake_cluster import CORE, FakeCluster
from hone.artifacts.reader_pod import FileStream
from hone.kube.cluster import Cluster
from kubernetes.client import ApiClient
from long_matrix import make_random

PODS = f"{CORE}/pods"


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCluster]:
    with serve_artifact(tmp_path, monkeypatch) as found:
        yield found


def test_an_artifact_is_pulled_and_its_pod_deleted(fake: FakeCluster, tmp_path: Path) -> None:
    code, out, err = run(tmp_path, "pull", "faq")
    assert code == 0, err
    assert "✓ faq is the adapter of faq: sha256:" in out
    assert "hone serve faq" in err
    assert_pulled(tmp_path / "faq", fake)
    assert [call[0] for call in fake.calls if call[1].startswith(PODS) and call[0] != "GET"] == ["POST", "DELETE"]
    (created,) = [body for method, path, body in fake.calls if (method, path) == ("POST", PODS)]
    assert created["spec"]["containers"][0]["image"] == "runtime:1"
    assert not [path for path in fake.objects if path.startswith(PODS)]


def test_a_pull_killed_at_random_moments_loses_nothing(
    fake: FakeCluster, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    chance = make_random("killed pulls")
    fake.frame_seconds = 0.01
    place = tmp_path / "faq/adapter"
    largest = 0
    for _ in range(20 if pytestconfig.getoption("--long") else 3):
        with start(tmp_path, "pull", "faq") as started:
            end = time.monotonic() + 300
            requests = len([call for call in fake.calls if call[1].endswith("/exec")])
            while len([call for call in fake.calls if call[1].endswith("/exec")]) <= requests:
                assert time.monotonic() < end
                if started.poll() is not None:
                    break
                time.sleep(0.01)
            time.sleep(chance.random() * 0.5)
            started.send_signal(chance.choice([signal.SIGKILL, signal.SIGINT, signal.SIGTERM]))
        # Partial files and finished ones: a small file may be complete when the pull is killed, and get its name later.
        received = sum(path.stat().st_size for path in place.glob("*")) if place.exists() else 0
        assert received >= largest
        largest = received
        if (tmp_path / "faq/manifest.json").exists():
            break
    fake.frame_seconds = 0
    code, _, err = run(tmp_path, "pull", "faq")
    assert code == 0, err
    assert_pulled(tmp_path / "faq", fake)


def test_ctrl_c_while_a_stream_opens_is_no_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    def open_websocket(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("websocket.WebSocket.connect", open_websocket)
    with pytest.raises(KeyboardInterrupt):
        FileStream(Cluster(ApiClient(), "ns"), "p", ["0:a"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stopped_pull_deletes_its_pod(fake: FakeCluster, tmp_path: Path, number: int) -> None:
    fake.frame_seconds = 0.2
    with start(tmp_path, "pull", "faq") as started:
        end = time.monotonic() + 300
        while len([call for call in fake.calls if call[1].endswith("/exec")]) < 2:
            assert time.monotonic() < end
            time.sleep(0.02)
        started.send_signal(number)
        _, err = started.communicate(timeout=300)
    assert started.returncode == 130
    assert "Traceback" not in err
    assert [call[0] for call in fake.calls if call[1].startswith(PODS) and call[0] != "GET"] == ["POST", "DELETE"]


def test_a_missing_right_is_named_and_no_pod_is_made(fake: FakeCluster, tmp_path: Path) -> None:
    fake.refused.add("delete pods")
    code, _, err = run(tmp_path, "pull", "faq")
    assert code == 1
    assert "you lack the right to delete pods in namespace ns" in err
    assert not [call for call in fake.calls if (call[0], call[1]) == ("POST", PODS)]


def test_a_claim_without_an_artifact_has_the_reason_as_its_exit_code(fake: FakeCluster, tmp_path: Path) -> None:
    assert fake.claim is not None
    (fake.claim / "manifest.json").unlink()
    code, _, err = run(tmp_path, "pull", "faq")
    assert code == 66
    assert "ArtifactMissing: The output claim has no manifest.json: No such file or directory" in err


def test_a_changed_file_is_refused(fake: FakeCluster, tmp_path: Path) -> None:
    assert fake.claim is not None
    (fake.claim / "adapter/adapter_config.json").write_text("[]")
    code, _, err = run(tmp_path, "pull", "faq", "here")
    assert code == 65
    assert "adapter/adapter_config.json arrived with another sha256" in err
    assert not (tmp_path / "here/manifest.json").exists()


def test_a_report_is_saved(fake: FakeCluster, tmp_path: Path) -> None:
    code, out, err = run(tmp_path, "report", "faq", "--no-browser")
    assert code == 0, err
    assert (tmp_path / "faq-report.html").read_text() == "<h1>faq</h1>"
    assert out == "✓ faq-report.html\n"
    (tmp_path / "faq-report.html").write_text("mine")
    code, _, err = run(tmp_path, "report", "faq", "--no-browser")
    assert code == 1
    assert "faq-report.html exists, and is another file" in err
