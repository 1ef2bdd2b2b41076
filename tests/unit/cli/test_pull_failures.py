"""`hone pull` where the API server, the pod, the claim or the folder fail."""

import errno
import fcntl
import io
import os
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from artifact_cluster import assert_pulled, run, serve_artifact
from fake_cluster import CORE, FakeCluster
from hone.artifacts import receive, target
from hone.artifacts.reader_pod import FileStream
from hone.errors import ClientError
from hone.kube import cluster, temporary_pod
from hone_api.artifacts.manifest import FileDigest
from hone_cli.main import main
from hypothesis import given
from hypothesis import strategies as st

PODS = f"{CORE}/pods"


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCluster]:
    with serve_artifact(tmp_path, monkeypatch) as found:
        yield found


def find_pods(fake: FakeCluster) -> list[str]:
    return [path for path in fake.objects if path.startswith(PODS)]


def test_a_refused_exec_is_no_cut(fake: FakeCluster, tmp_path: Path) -> None:
    fake.reply = lambda method, path: 403 if path.endswith("/exec") else None
    code, _, err = run(tmp_path, "pull", "faq")
    assert code == 1
    assert "failed by the test" in err
    assert "Handshake" not in err
    assert len([path for _, path, _ in fake.calls if path.endswith("/exec")]) == 1
    assert not find_pods(fake)


def test_an_exec_that_fails_for_a_moment_is_opened_again(fake: FakeCluster, tmp_path: Path) -> None:
    failures = [500, 429]
    fake.reply = lambda method, path: failures.pop() if failures and path.endswith("/exec") else None
    code, _, err = run(tmp_path, "pull", "faq")
    assert code == 0, err
    assert_pulled(tmp_path / "faq", fake)


def test_an_exec_without_an_answer_is_a_cut(fake: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hone.kube.exec_socket.TIMEOUT", (0.25, 0.25))
    fake.reply = lambda method, path: 0
    with pytest.raises(receive.Cut, match="timed out"):
        FileStream(cluster.connect(None, None), "p", ["0:a"])


def test_a_redirected_exec_is_not_followed(fake: FakeCluster) -> None:
    fake.reply = lambda method, path: 302
    with pytest.raises(receive.Cut, match="Redirect limit"):
        FileStream(cluster.connect(None, None), "p", ["0:a"])


def test_a_moment_without_the_api_server_does_not_end_the_wait(fake: FakeCluster, tmp_path: Path) -> None:
    failures = [500, 503]
    fake.reply = lambda method, path: failures.pop() if failures and f"{PODS}/" in path and method == "GET" else None
    code, _, err = run(tmp_path, "pull", "faq")
    assert code == 0, err
    assert not find_pods(fake)


def test_an_evicted_pod_gives_its_reason() -> None:
    status = {"phase": "Failed", "reason": "Evicted", "message": "The node was low on memory"}
    assert temporary_pod.describe_pending({"status": status}, "reader") == "Evicted: The node was low on memory"


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_what_is_no_file_on_the_claim_is_not_read(fake: FakeCluster, tmp_path: Path, kind: str) -> None:
    assert fake.claim is not None
    place = fake.claim / "adapter/adapter_config.json"
    place.unlink()
    if kind == "link":
        place.symlink_to(tmp_path / "kubeconfig")
    elif kind == "pipe":
        os.mkfifo(place)
    else:
        place.mkdir()
    code, _, err = run(tmp_path, "pull", "faq")
    assert code == 66
    assert "ArtifactMissing: The output claim has no adapter/adapter_config.json" in err


@given(st.text("aü日\U0001f600", min_size=1, max_size=250))
def test_a_partial_files_name_fits_a_file_system(name: str) -> None:
    found = target.make_partial_path(Path("x"), f"adapter/{name}", FileDigest(sha256="0" * 64, size=1))
    assert len(found.name.encode()) <= 255
    assert found.name.startswith(".")
    assert found.name.endswith(f".{'0' * 16}.partial")


def test_a_folder_that_cant_be_locked_is_filled(
    fake: FakeCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EBADF, "Bad file descriptor")  # as NFS answers for a folder

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(SystemExit) as ended:
        main(["pull", "faq", str(tmp_path / "faq")])
    assert ended.value.code in (0, None)
    assert "can't be locked" in capsys.readouterr().err
    assert_pulled(tmp_path / "faq", fake)


def test_two_pulls_into_one_folder_are_refused(tmp_path: Path) -> None:
    entered, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with target.lock_folder(tmp_path):
            entered.set()
            leave.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    try:
        assert entered.wait(60)
        with pytest.raises(ClientError, match="another `hone pull`"), target.lock_folder(tmp_path):
            pass
    finally:
        leave.set()
        holder.join()


def test_a_full_disk_names_the_file(tmp_path: Path) -> None:
    wanted = {"a": receive.Request(Path("/dev/full"), 0, 1)}
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w|") as archive:
        entry = tarfile.TarInfo("a")
        entry.size = 1
        archive.addfile(entry, io.BytesIO(b"x"))
    with pytest.raises(OSError, match="No space left on device") as caught:
        receive.receive_files(io.BytesIO(stream.getvalue()), wanted, lambda name, count: None)
    assert caught.value.filename == "/dev/full"


def test_a_report_into_a_missing_folder_starts_no_pod(fake: FakeCluster, tmp_path: Path) -> None:
    code, _, err = run(tmp_path, "report", "faq", "--output", "missing/x.html")
    assert code == 1
    assert "missing is no folder" in err
    assert ("POST", PODS) not in [call[:2] for call in fake.calls]
