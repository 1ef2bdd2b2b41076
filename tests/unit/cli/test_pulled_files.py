"""The transfer of `hone pull` without a cluster: streams cut anywhere, hostile names, foreign files, and the pod."""

import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hone.artifacts import pod_script, pull, reader_pod, target, transfer
from hone.artifacts.receive import Advance, Cut, Request, receive_files
from hone.artifacts.transfer import Session
from hone.errors import ClientError
from hone.objects.views import require_artifact
from hone.reports import Report
from hone_api.artifacts.manifest import ArtifactManifest, FileDigest, compute_files_digest
from hone_api.artifacts.verification import verify
from hone_api.reasons import ARTIFACT_CORRUPT, HoneError
from hypothesis import given, settings
from hypothesis import strategies as st

WEIGHTS = "adapter/adapter_model.safetensors"
CONTENTS = {"adapter/adapter_config.json": b"{}", WEIGHTS: os.urandom(300_000), "adapter/empty": b""}
JOB: dict[str, Any] = {
    "apiVersion": "hone.dev/v1alpha1",
    "kind": "FineTuneJob",
    "metadata": {"name": "faq", "namespace": "ns", "uid": "u"},
    "spec": {},
    "status": {"stage": "Succeeded"},
}


def make_manifest(contents: Mapping[str, bytes], kind: str = "adapter") -> ArtifactManifest:
    files = {
        path: FileDigest(sha256=hashlib.sha256(content).hexdigest(), size=len(content))
        for path, content in contents.items()
    }
    return ArtifactManifest.model_validate(
        {
            "kind": kind,
            "job": "faq",
            "digest": compute_files_digest(files),
            "baseModel": {"name": "a/b"},
            "datasetFingerprint": "f",
            "files": files,
            "metrics": {},
            "parameters": {},
            "versions": {},
            "spec": {},
        }
    )


MANIFEST = make_manifest(CONTENTS)
DIGEST = MANIFEST.digest


def sent(root: Path, *wanted: str) -> tuple[int, bytes, str]:
    """Run the pod's script on a folder. Return exit code, stream and errors."""
    script = Path(pod_script.__file__).read_text().replace('ROOT = "/output"', f"ROOT = {str(root)!r}")
    command = [sys.executable, "-I", "-c", f"import os; exec(os.environ['{reader_pod.SCRIPT}'])", "send", *wanted]
    done = subprocess.run(command, env={**os.environ, reader_pod.SCRIPT: script}, capture_output=True)
    return done.returncode, done.stdout, done.stderr.decode()


def archive(members: Mapping[str, bytes], **fields: Any) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as writer:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            for field, value in fields.items():
                setattr(entry, field, value)
            writer.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


class CutSession(Session):
    """A session whose streams end after the given numbers of bytes, and then stay complete."""

    def __init__(self, contents: Mapping[str, bytes], cuts: list[int], *, is_killed: bool = False) -> None:
        super().__init__(None, "p")  # type: ignore[arg-type]
        vars(self).update(contents=contents, cuts=cuts, is_killed=is_killed, sent=0)

    def _receive(self, wanted: Mapping[str, Request], advance: Advance) -> None:
        contents: Mapping[str, bytes] = vars(self)["contents"]
        cuts: list[int] = vars(self)["cuts"]
        stream = archive({path: contents[path][request.offset :] for path, request in wanted.items()})
        vars(self)["sent"] += sum(len(contents[path]) - request.offset for path, request in wanted.items())
        cut = cuts.pop(0) if cuts else len(stream)
        try:
            receive_files(io.BytesIO(stream[:cut]), wanted, advance)
        except Cut:
            if vars(self)["is_killed"]:
                raise KeyboardInterrupt from None
            raise


def run_pull(session: Session, root: Path) -> None:
    root.mkdir(exist_ok=True)
    pull.pull_artifact(session, root, DIGEST, lambda sizes: lambda name, count: None)


def with_manifest(contents: Mapping[str, bytes]) -> dict[str, bytes]:
    return {**contents, "manifest.json": MANIFEST.model_dump_json(by_alias=True, exclude_none=True).encode()}


def read_tree(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@settings(deadline=None)
@given(st.lists(st.integers(0, 310_000), max_size=12), st.booleans())
def test_a_transfer_cut_anywhere_ends_with_the_same_bytes(cuts: list[int], is_killed: bool) -> None:
    contents = with_manifest(CONTENTS)
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(transfer, "RETRY_SECONDS", 0)
        patch.setattr(transfer, "MOST_FAILURES", 20)
        root = Path(folder) / "faq"
        session = CutSession(contents, list(cuts), is_killed=is_killed)
        for _ in range(len(cuts) + 1):
            with suppress(KeyboardInterrupt):
                run_pull(session, root)
                break
        assert read_tree(root) == contents
        verify(root, MANIFEST)


def test_received_bytes_are_not_requested_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "RETRY_SECONDS", 0)
    session = CutSession(with_manifest(CONTENTS), [10**9, 200_000], is_killed=True)
    with pytest.raises(KeyboardInterrupt):
        run_pull(session, tmp_path / "faq")
    before = vars(session)["sent"]
    run_pull(session, tmp_path / "faq")
    assert vars(session)["sent"] - before < 300_000 - 2 * 2**16
    run_pull(session, tmp_path / "faq")
    assert read_tree(tmp_path / "faq") == with_manifest(CONTENTS)


def test_a_transfer_without_progress_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "RETRY_SECONDS", 0)
    session = CutSession(with_manifest(CONTENTS), [0] * 100)
    with pytest.raises(ClientError, match="was cut") as given_up:
        run_pull(session, tmp_path / "faq")
    assert "it continues where it stopped" in given_up.value.remedy


def test_a_file_with_other_bytes_is_removed(tmp_path: Path) -> None:
    contents = with_manifest(CONTENTS | {"adapter/adapter_config.json": b"[]"})
    with pytest.raises(HoneError, match="another sha256"):
        run_pull(CutSession(contents, []), tmp_path)
    assert "adapter/adapter_config.json" not in read_tree(tmp_path)
    assert "manifest.json" not in read_tree(tmp_path)


def test_a_file_of_another_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HoneError, match="has 3 bytes on the claim, the manifest lists 2"):
        run_pull(CutSession(with_manifest(CONTENTS | {"adapter/adapter_config.json": b"{ }"}), []), tmp_path)


@pytest.mark.parametrize(
    "path",
    [
        "../x",
        "/etc/passwd",
        "adapter/../../x",
        "adapter//x",
        "merged/x",
        "x",
        "adapter/a\nb",
        "adapter/\x1b[2J",
        "adapter/.",
    ],
)
def test_hostile_names_in_the_manifest_are_refused(path: str) -> None:
    with pytest.raises(HoneError) as refused:
        target.check_names(make_manifest(CONTENTS | {path: b"x"}))
    assert refused.value.reason is ARTIFACT_CORRUPT


@given(st.text(min_size=1, max_size=20))
def test_only_files_in_the_artifacts_folders_pass(name: str) -> None:
    path = f"adapter/{name}"
    with suppress(HoneError, ValueError):
        target.check_names(make_manifest({path: b"x"}))
        assert os.path.normpath(path) == path
        assert "/adapter/" in f"/{os.path.normpath(path)}"


@pytest.mark.parametrize("name", ["../x", "/x", "other", "adapter/adapter_config.json"])
def test_members_that_were_not_requested_are_refused(tmp_path: Path, name: str) -> None:
    wanted = {"wanted": Request(tmp_path / "wanted", 0, None)}
    with pytest.raises(HoneError, match="was not requested"):
        receive_files(io.BytesIO(archive({name: b"x"})), wanted, lambda *_: None)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_members_other_than_files_are_refused(tmp_path: Path, kind: bytes) -> None:
    stream = archive({"wanted": b""}, type=kind, linkname="/etc/passwd")
    with pytest.raises(HoneError, match="was not requested"):
        receive_files(io.BytesIO(stream), {"wanted": Request(tmp_path / "wanted", 0, None)}, lambda *_: None)


@given(st.binary(max_size=3000))
def test_a_stream_of_any_bytes_is_a_cut_or_refused(noise: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.raises((Cut, HoneError)):
        receive_files(io.BytesIO(noise), {"wanted": Request(Path(folder) / "wanted", 0, 5)}, lambda *_: None)


def test_memory_does_not_depend_on_the_size_of_a_file(tmp_path: Path) -> None:
    import tracemalloc

    size = 40 * 2**20

    class Endless(io.RawIOBase):
        def __init__(self) -> None:
            entry = tarfile.TarInfo("wanted")
            entry.size = size
            self.head, self.left = entry.tobuf(), size + 1024

        def read(self, count: int = -1, /) -> bytes:
            if self.head:
                found, self.head = self.head[:count], self.head[count:]
                return found
            count = min(count, self.left)
            self.left -= count
            return bytes(count)

    tracemalloc.start()
    receive_files(Endless(), {"wanted": Request(tmp_path / "wanted", 0, size)}, lambda *_: None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "wanted").stat().st_size == size
    assert peak < 8 * 2**20


class TestTarget:
    @pytest.mark.parametrize("path", ["adapter/adapter_config.json", "manifest.json", "adapter/model.safetensors"])
    def test_a_foreign_file_is_refused_and_stays(self, tmp_path: Path, path: str) -> None:
        place = tmp_path / path
        place.parent.mkdir(exist_ok=True)
        place.write_text("mine")
        with pytest.raises(ClientError, match=place.name):
            run_pull(CutSession(with_manifest(CONTENTS), []), tmp_path)
        assert read_tree(tmp_path) == {path: b"mine"}

    def test_a_link_out_of_the_folder_is_refused(self, tmp_path: Path) -> None:
        outside, root = tmp_path / "outside", tmp_path / "root"
        outside.mkdir()
        root.mkdir()
        (root / "adapter").symlink_to(outside)
        with pytest.raises(ClientError, match="adapter is not of this artifact"):
            run_pull(CutSession(with_manifest(CONTENTS), []), root)
        assert not list(outside.iterdir())

    def test_a_file_next_to_the_artifact_stays(self, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("mine")
        run_pull(CutSession(with_manifest(CONTENTS), []), tmp_path)
        assert read_tree(tmp_path) == with_manifest(CONTENTS) | {"notes.txt": b"mine"}

    def test_two_pulls_do_not_share_a_folder(self, tmp_path: Path) -> None:
        with (
            target.lock_folder(tmp_path),
            pytest.raises(ClientError, match="another `hone pull`"),
            target.lock_folder(tmp_path),
        ):
            pass
        (tmp_path / "file").touch()
        with pytest.raises(ClientError, match="is a file"), target.lock_folder(tmp_path / "file"):
            pass

    def test_an_artifact_without_room_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pull.shutil, "disk_usage", lambda root: type("Usage", (), {"free": 10}))
        with pytest.raises(ClientError, match="10 bytes of free space"):
            run_pull(CutSession(with_manifest(CONTENTS), []), tmp_path)

    def test_the_manifest_of_another_artifact_is_refused(self) -> None:
        content = with_manifest(CONTENTS)["manifest.json"]
        with pytest.raises(HoneError, match="the job's status has sha256:0"):
            pull.parse_manifest(content, "sha256:0")
        with pytest.raises(HoneError, match="can't be read"):
            pull.parse_manifest(b"{", DIGEST)


class TestPod:
    def test_the_script_sends_the_rest_of_files(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(b"0123456789")
        code, stream, err = sent(tmp_path, "4:a")
        assert (code, err) == (0, "")
        place = tmp_path / "a.partial"
        place.write_bytes(b"0123")
        receive_files(io.BytesIO(stream), {"a": Request(place, 4, 10)}, lambda *_: None)
        assert place.read_bytes() == b"0123456789"

    def test_a_missing_file_ends_the_stream_without_its_end(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(b"a")
        code, stream, err = sent(tmp_path, "0:a", "0:b")
        assert (code, err) == (pod_script.MISSING, "b: No such file or directory")
        wanted = {name: Request(tmp_path / f"{name}.partial", 0, None) for name in "ab"}
        with pytest.raises(Cut):
            receive_files(io.BytesIO(stream), wanted, lambda *_: None)

    def test_the_pod_is_restricted_and_reads_only(self) -> None:
        template = {
            "securityContext": {"runAsUser": 0, "fsGroup": 7, "sysctls": [{"name": "x"}]},
            "tolerations": [{"key": "amd.com/gpu"}],
            "containers": [{"name": "trainer", "image": "runtime:1"}],
            "hostNetwork": True,
        }
        image = reader_pod.find_image(JOB, template, None)
        body = reader_pod.make_pod("p", JOB, image, template, ["n1", "n2"])
        spec = body["spec"]
        assert spec["securityContext"] == {
            "runAsUser": 65532,
            "fsGroup": 7,
            "runAsNonRoot": True,
            "seccompProfile": {"type": "RuntimeDefault"},
        }
        assert "hostNetwork" not in spec
        container = spec["containers"][0]
        assert container["image"] == "runtime:1"
        assert container["volumeMounts"] == [
            {"name": "claim", "mountPath": "/output", "subPath": "ns/faq", "readOnly": True}
        ]
        assert body["metadata"]["ownerReferences"][0]["uid"] == "u"
        terms = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
        assert [term["matchFields"][0]["values"] for term in terms] == [["n1"], ["n2"]]

    def test_the_image_is_that_of_the_job(self) -> None:
        assert reader_pod.find_image({**JOB, "spec": {"pod": {"image": "mine"}}}, None, "default") == "mine"
        assert reader_pod.find_image(JOB, None, "default") == "default"
        with pytest.raises(ClientError, match="runtime image of FineTuneJob faq is unknown"):
            reader_pod.find_image(JOB, None, None)

    def test_a_claim_of_one_node_is_read_on_the_node_that_mounts_it(self) -> None:
        volumes = [{"persistentVolumeClaim": {"claimName": "faq"}}]
        pod = {"spec": {"volumes": volumes, "nodeName": "n1"}, "status": {"phase": "Running"}}
        claim = {"metadata": {"name": "faq"}, "spec": {"accessModes": ["ReadWriteOnce"]}}
        assert reader_pod.find_nodes(claim, [pod, pod | {"status": {"phase": "Succeeded"}}]) == ["n1"]
        assert reader_pod.find_nodes(claim | {"spec": {"accessModes": ["ReadWriteMany"]}}, [pod]) == []
        assert reader_pod.find_nodes(None, [pod]) == []

    def test_the_names_of_one_request_fit_into_a_url(self, tmp_path: Path) -> None:
        requests = {f"model/model-{n:05}-of-00999.safetensors": Request(tmp_path, 0, 1) for n in range(999)}
        found = transfer.limit_request(requests)
        assert 10 < len(found) < 100
        assert transfer.limit_request({"x" * 9999: Request(tmp_path, 0, 1)})


def test_a_report_replaces_no_other_file(tmp_path: Path) -> None:
    place = tmp_path / "report.html"
    Report("faq", b"one").save(place)
    Report("faq", b"one").save(place)
    with pytest.raises(ClientError, match="is another file"):
        Report("faq", b"two").save(place)
    assert place.read_bytes() == b"one"


def test_a_job_without_an_artifact_is_named() -> None:
    with pytest.raises(ClientError, match="has no artifact: its stage is Training"):
        require_artifact(JOB | {"status": {"stage": "Training"}})
