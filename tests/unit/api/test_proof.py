"""Which manifest describes a folder, for every way to name the folder."""

import shutil
from pathlib import Path

import pytest
from hone_api.artifacts.manifest import (
    list_folders,
)
from hone_api.artifacts.proof import find_proof, prove
from hone_api.reasons import HoneError
from sealed_artifacts import seal

KINDS = ["adapter", "merged", "model", "both"]
FILES = ["adapter_model.safetensors", "adapter_config.json", "config.json"]
PARTS = [(kind, part) for kind in KINDS for part in list_folders(kind)]  # type: ignore[arg-type]


def make_tree(root: Path, kind: str) -> Path:
    """Write an artifact of small files, each of which is a configuration or weights for some kind."""
    folders = list_folders(kind)  # type: ignore[arg-type]
    for folder in folders:
        (root / folder).mkdir(parents=True)
        for name in FILES:
            (root / folder / name).write_bytes(folder.encode())
    seal(root, kind)  # type: ignore[arg-type]
    return root


def ways_to_name(folder: Path, links: Path) -> list[Path]:
    """Return the folder's paths: directly, by a detour, and by links to it and to its parent."""
    (links / "to-it").symlink_to(folder)
    (links / "to-its-parent").symlink_to(folder.parent)
    return [folder, folder / ".." / folder.name, links / "to-it", links / "to-its-parent" / folder.name]


@pytest.mark.parametrize(("kind", "part"), PARTS)
def test_a_folder_of_an_artifact_is_proved_by_the_trees_manifest(tmp_path: Path, kind: str, part: str) -> None:
    root = make_tree(tmp_path / "tree", kind)
    (tmp_path / "links").mkdir()
    ways = ways_to_name(root / part, tmp_path / "links")
    for folder in ways:
        proof = prove(folder)
        assert proof
        assert (proof.part, proof.has_adapter) == (part, part == "adapter")
        assert (proof.model_folder is None) == proof.has_adapter
    (root / part / FILES[0]).write_bytes(b"other")
    for folder in [root, *ways]:
        with pytest.raises(HoneError, match=FILES[0]) as refused:
            prove(folder)
        assert refused.value.reason.name == "ArtifactCorrupt"


@pytest.mark.parametrize("kind", KINDS)
def test_a_tree_has_the_folders_of_its_kind(tmp_path: Path, kind: str) -> None:
    proof = prove(make_tree(tmp_path, kind))
    assert proof
    assert proof.has_adapter is (kind in ("adapter", "both"))
    folder = {"adapter": None, "both": "merged"}.get(kind, kind)
    assert proof.model_folder == (folder and tmp_path / folder)


def test_a_folder_without_a_manifest_is_not_verified(tmp_path: Path) -> None:
    root = make_tree(tmp_path / "tree", "adapter")
    shutil.copytree(root / "adapter", root / "merged")
    shutil.copytree(root / "adapter", tmp_path / "adapter")
    (root / "checkpoints").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    nowhere = [root / "model", tmp_path / "loop", root / "adapter\0"]
    for folder in [root / "merged", tmp_path / "adapter", root / "checkpoints", tmp_path, *nowhere]:
        assert find_proof(folder) is None


@pytest.mark.parametrize("content", [None, b"", b"{}", b"[1]"])
def test_a_manifest_that_cannot_be_read_proves_no_folder(tmp_path: Path, content: bytes | None) -> None:
    root = make_tree(tmp_path, "adapter")
    (root / "manifest.json").unlink()
    if content is None:
        (root / "manifest.json").symlink_to(tmp_path / "nowhere")
    else:
        (root / "manifest.json").write_bytes(content)
    for folder in (root, root / "adapter"):
        with pytest.raises(HoneError) as refused:
            prove(folder)
        assert refused.value.reason.name == "ArtifactCorrupt"
    assert "move it to another folder" in (refused.value.remedy or "")
