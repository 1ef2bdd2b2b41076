"""manifest.json: written whole, read back, and every difference from the files found."""

from pathlib import Path

import pytest
from hone_api.artifact import (
    ArtifactManifest,
    BaseModelReference,
    describe_files,
    digest_of,
    read_manifest,
    verify,
    write_manifest,
)
from hone_api.reasons import HoneError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An artifact tree with two files, and a folder that is no part of the artifact."""
    (tmp_path / "adapter/nested").mkdir(parents=True)
    (tmp_path / "adapter/adapter_model.safetensors").write_bytes(bytes(range(256)) * 100)
    (tmp_path / "adapter/nested/README.md").write_text("# Card\n")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/optimizer.pt").write_bytes(b"x")
    files = describe_files(tmp_path, ["adapter"])
    manifest = ArtifactManifest(
        kind="adapter",
        job="job",
        digest=digest_of(files),
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


def refusal(root: Path) -> HoneError:
    with pytest.raises(HoneError) as refused:
        verify(root, read_manifest(root))
    return refused.value


def test_round_trip(root: Path) -> None:
    manifest = read_manifest(root)
    assert list(manifest.files) == ["adapter/adapter_model.safetensors", "adapter/nested/README.md"]
    assert manifest.files["adapter/adapter_model.safetensors"].size == 25_600
    assert manifest.digest.startswith("sha256:")
    verify(root, manifest)
    assert not list(root.glob(".*")), "no temporary file stays behind"


def test_digest_is_what_sha256sum_makes(root: Path) -> None:
    import subprocess

    command = "find adapter -type f | LC_ALL=C sort | xargs sha256sum | sha256sum"
    printed = subprocess.run(["sh", "-c", command], cwd=root, capture_output=True, text=True, check=True).stdout
    assert read_manifest(root).digest == f"sha256:{printed.split()[0]}"


def test_a_changed_file_is_named(root: Path) -> None:
    file = root / "adapter/adapter_model.safetensors"
    content = bytearray(file.read_bytes())
    content[1000] ^= 1
    file.write_bytes(content)
    error = refusal(root)
    assert error.reason.name == "ArtifactCorrupt"
    assert f"{file} has sha256" in error.message


def test_a_shortened_file_is_named(root: Path) -> None:
    file = root / "adapter/nested/README.md"
    file.write_text("#")
    assert refusal(root).message == f"{file} has 1 bytes, the manifest says 7"


def test_a_missing_file_is_named(root: Path) -> None:
    file = root / "adapter/nested/README.md"
    file.unlink()
    assert refusal(root).message == f"{file} is missing"


def test_a_file_left_out_of_the_list_is_noticed(root: Path) -> None:
    manifest = read_manifest(root)
    del manifest.files["adapter/nested/README.md"]
    with pytest.raises(HoneError, match="its files make another"):
        verify(root, manifest)


def test_no_manifest_no_artifact(tmp_path: Path) -> None:
    with pytest.raises(HoneError, match=r"has no manifest\.json") as refused:
        read_manifest(tmp_path)
    assert refused.value.reason.name == "ArtifactMissing"


@pytest.mark.parametrize("content", ["", "{", '{"kind": "adapter"}', '{"kind": "tensor"}'])
def test_a_broken_manifest_is_corrupt(tmp_path: Path, content: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(HoneError, match="is not an artifact's manifest") as refused:
        read_manifest(tmp_path)
    assert refused.value.reason.name == "ArtifactCorrupt"


def test_a_new_manifest_replaces_the_old(root: Path) -> None:
    manifest = read_manifest(root).model_copy(update={"job": "again"})
    write_manifest(root, manifest)
    assert read_manifest(root).job == "again"
