"""manifest.json is written completely or not at all, and read as a file that others may have changed."""

import os
from pathlib import Path

import pytest
from hone_api.artifacts.manifest import (
    LARGEST_MANIFEST_BYTES,
    ArtifactManifest,
    BaseModelReference,
    compute_files_digest,
    describe_files,
    read_manifest,
    write_manifest,
)
from hone_api.reasons import HoneError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return an artifact tree with two files, and a folder that is no part of the artifact."""
    (tmp_path / "adapter/nested").mkdir(parents=True)
    (tmp_path / "adapter/adapter_model.safetensors").write_bytes(bytes(range(256)) * 100)
    (tmp_path / "adapter/nested/README.md").write_text("# Card\n")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/optimizer.pt").write_bytes(b"x")
    files = describe_files(tmp_path, ["adapter"])
    manifest = ArtifactManifest(
        kind="adapter",
        job="job",
        digest=compute_files_digest(files),
        base_model=BaseModelReference(name="a/b", revision="0" * 40),
        dataset_fingerprint="f",
        files=files,
        metrics={"trainLoss": 1.5},
        parameters={"trainable": 1, "total": 2},
        versions={"torch": "2"},
        spec={"method": "lora"},
    )
    write_manifest(tmp_path, manifest)
    return tmp_path


def test_round_trip(root: Path) -> None:
    manifest = read_manifest(root)
    assert list(manifest.files) == ["adapter/adapter_model.safetensors", "adapter/nested/README.md"]
    assert manifest.files["adapter/adapter_model.safetensors"].size == 25_600
    assert manifest.digest.startswith("sha256:")
    assert not list(root.glob(".*")), "no temporary file stays behind"


def test_digest_is_what_sha256sum_makes(root: Path) -> None:
    import subprocess

    command = "find adapter -type f | LC_ALL=C sort | xargs sha256sum | sha256sum"
    printed = subprocess.run(["sh", "-c", command], cwd=root, capture_output=True, text=True, check=True).stdout
    assert read_manifest(root).digest == f"sha256:{printed.split()[0]}"


def test_no_manifest_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(HoneError, match=r"has no manifest\.json") as refused:
        read_manifest(tmp_path)
    assert refused.value.reason.name == "ArtifactMissing"


def rewrite(root: Path, old: str, new: str) -> None:
    """Replace text in manifest.json."""
    path = root / "manifest.json"
    content = path.read_text()
    assert old in content
    path.write_text(content.replace(old, new, 1))


def refusal(root: Path) -> str:
    with pytest.raises(HoneError) as refused:
        read_manifest(root)
    assert refused.value.reason.name == "ArtifactCorrupt"
    assert str(root / "manifest.json") in refused.value.message
    assert refused.value.message.isprintable()
    return refused.value.message


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "\ud800", '{"kind": "adapter"}', '{"kind": "tensor"}', "[" * 100_000]
)
def test_a_broken_manifest_is_corrupt(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    assert "is not an artifact's manifest" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"kind": "adapter"', '"kind": "adapter", "kind": "adapter"'),
        ('"size": 25600', '"size": 1, "size": 25600'),
        ("1.5", "NaN"),
        ("1.5", "1e999"),
        ('"method": "lora"', '"method": ' + "[" * 300 + "]" * 300),
        ('"size": 25600', '"size": true'),
        ('"size": 25600', '"size": -1'),
        ('"size": 25600', '"size": 25600.0'),
        ('"size": 25600', '"size": "25600"'),
        ('"size": 25600', f'"size": {2**64}'),
        ('"size": 25600', '"size": ' + "9" * 5000),
        ('"sha256": "', '"sha256": "0'),
        ('"sha256": "', '"sha256": "A'),
        ('"digest": "sha256:', '"digest": "md5:'),
        ('"digest": "sha256:', '"digest": "sha256:\\n'),
        ('"job": "job"', '"job": "\\u001b[2J"'),
        ('"name": "a/b"', '"name": "/etc"'),
        ('"name": "a/b"', '"claim": "models", "path": "../other"'),
        ('"revision": "0', '"revision": "\\n'),
    ],
)
def test_a_manifest_that_hone_would_not_write_is_corrupt(root: Path, old: str, new: str) -> None:
    rewrite(root, old, new)
    refusal(root)


def test_a_manifest_that_is_too_large_or_no_file_is_corrupt(root: Path) -> None:
    path = root / "manifest.json"
    path.write_text(path.read_text() + " " * LARGEST_MANIFEST_BYTES)
    assert "larger than" in refusal(root)
    path.rename(root / "elsewhere.json")
    path.symlink_to("elsewhere.json")
    refusal(root)
    path.unlink()
    path.mkdir()
    refusal(root)
    path.rmdir()
    os.mkfifo(path)
    assert "not a regular file" in refusal(root)


def test_fields_of_a_newer_version_are_ignored(root: Path) -> None:
    for old in ('"kind"', '"sha256"', '"name"'):
        rewrite(root, old, f'"ofTomorrow": {{"a": 1}}, {old}')
    manifest = read_manifest(root)
    assert (manifest.job, manifest.base_model.name) == ("job", "a/b")
    assert "ofTomorrow" not in str(manifest.to_wire())


def test_a_new_manifest_replaces_the_old(root: Path) -> None:
    manifest = read_manifest(root).model_copy(update={"job": "again"})
    write_manifest(root, manifest)
    assert read_manifest(root).job == "again"
