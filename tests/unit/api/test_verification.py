"""An artifact's folders hold exactly the files of its manifest."""

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
from hone_api.artifacts.manifest import (
    ArtifactKind,
    FileDigest,
    compute_files_digest,
    describe_files,
    list_folders,
    read_manifest,
)
from hone_api.artifacts.verification import verify
from hone_api.reasons import HoneError
from sealed_artifacts import seal

SECRET = b"a secret outside of the artifact"
FILES = ("README.md", "weights-00001-of-00002.safetensors", "nested/a.json")
LOADED = {"adapter": ("adapter_config.json", "adapter_model.safetensors"), "merged": ("config.json",)}


def make_tree(root: Path, kind: ArtifactKind = "both") -> Path:
    for folder in list_folders(kind):
        for name in (*FILES, *LOADED.get(folder, LOADED["merged"])):
            (root / folder / name).parent.mkdir(parents=True, exist_ok=True)
            (root / folder / name).write_bytes(f"{folder} {name}".encode())
    (root / "checkpoints").mkdir()
    (root / "checkpoints/optimizer.pt").write_bytes(b"x")
    (root.parent / "secret").write_bytes(SECRET)
    seal(root, kind)
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_tree(tmp_path / "tree")


def check(root: Path, below: str = "") -> None:
    verify(root, read_manifest(root), below)


def refusal(root: Path, below: str = "") -> HoneError:
    with pytest.raises(HoneError) as refused:
        check(root, below)
    error = refused.value
    assert error.reason.name == "ArtifactCorrupt"
    assert error.format_message().isprintable()
    assert describe(SECRET) not in error.format_message()
    return error


def describe(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_an_artifact_as_it_was_written_is_verified(root: Path) -> None:
    check(root)
    check(root, "adapter")
    assert list(read_manifest(root).files) == [
        f"{folder}/{name}" for folder, own in LOADED.items() for name in sorted((*FILES, *own))
    ]


def test_files_outside_of_the_folders_are_ignored(root: Path) -> None:
    (root / "model").mkdir()
    (root / "model/model.safetensors").write_bytes(b"of another run")
    (root / "logs").symlink_to("/nowhere")
    check(root)
    (root / "merged/planted").write_bytes(b"")
    check(root, "adapter")


FURTHER = """
    model.safetensors model.safetensors.index.json pytorch_model.bin pytorch_model.bin.index.json adapter_model.bin
    adapter_model.safetensors adapter_config.json chat_template.jinja chat_template.json chat_templates/tool.jinja
    additional_chat_templates/tool.jinja added_tokens.json special_tokens_map.json tokenizer.model tokenizer.json
    vocab.json merges.txt generation_config.json preprocessor_config.json processor_config.json modeling_own.py
    nested/__init__.py model.gguf .hidden nested/.hidden tf_model.h5 flax_model.msgpack consolidated.00.pth readme.md
    README.md.
    custom_generate/generate.py nested/deeper/file empty/"""


@pytest.mark.parametrize(
    ("folder", "name"), [(folder, name) for folder in LOADED for name in FURTHER.split() if name not in LOADED[folder]]
)
def test_any_further_file_is_refused_and_named(root: Path, folder: str, name: str) -> None:
    planted = root / folder / name
    planted.parent.mkdir(parents=True, exist_ok=True)
    if name.endswith("/"):
        planted.mkdir()
    else:
        planted.write_bytes(b"planted")
    error = refusal(root)
    assert str(root / folder / name.partition("/")[0]) in error.message
    assert "Remove it" in error.remedy


PLANTS: dict[str, Callable[[Path], None]] = {
    "link to a file of the tree": lambda path: path.symlink_to("README.md"),
    "link to a secret": lambda path: path.symlink_to("../../secret"),
    "link to a folder": lambda path: path.symlink_to("/etc"),
    "link to nothing": lambda path: path.symlink_to("/nowhere"),
    "FIFO": lambda path: os.mkfifo(path),
}


@pytest.mark.parametrize("plant", PLANTS)
@pytest.mark.parametrize("name", ["new", *FILES])
def test_links_and_special_files_are_refused(root: Path, plant: str, name: str) -> None:
    path = root / "merged" / name
    path.unlink(missing_ok=True)
    PLANTS[plant](path)
    assert str(path) in refusal(root).message


def test_a_folder_that_is_a_link_is_refused(root: Path) -> None:
    for folder in ("merged/nested", "merged"):
        shutil.move(root / folder, root / "moved")
        (root / folder).symlink_to(root / "moved")
        assert str(root / folder) in refusal(root).message
        (root / folder).unlink()
        shutil.move(root / "moved", root / folder)
    check(root)


def test_the_tree_itself_may_be_reached_by_a_link(root: Path) -> None:
    (root.parent / "link").symlink_to(root)
    check(root.parent / "link")


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_differs_is_named(root: Path, name: str) -> None:
    path = root / "adapter" / name
    content = path.read_bytes()
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    assert f"{path} differs" in refusal(root).message
    path.write_bytes(content[:-1])
    assert f"{path} has {len(content) - 1} bytes, and the manifest records {len(content)}" in refusal(root).message
    path.unlink()
    assert refusal(root).message == f"{path} is missing"
    path.mkdir()
    assert str(path) in refusal(root).message


def test_a_list_of_other_files_is_noticed_by_the_digest(root: Path) -> None:
    manifest = read_manifest(root)
    del manifest.files["adapter/README.md"]
    with pytest.raises(HoneError, match="has another"):
        verify(root, manifest)


@pytest.mark.parametrize(
    "path",
    [
        "/etc/hostname", "../secret", "adapter/../../secret", "adapter/./README.md", "adapter//README.md", "adapter/",
        "adapter", "", ".", "README.md", "manifest.json", "model/model.safetensors", "checkpoints/optimizer.pt",
        "adapter\\README.md", "adapter/a\\b", "adapter/a\nb", "adapter/a\x00b", "adapter/a\x1b[2J", "adapter/a\u2028b",
        "adapter/\u202egpj", "Adapter/README.md", "C:/x", "adapter/\ud800",
    ],
)  # fmt: skip
def test_a_manifest_may_list_only_files_of_its_folders(root: Path, path: str) -> None:
    files = describe_files(root, ["adapter", "merged"])
    content = FileDigest(sha256=describe(SECRET), size=len(SECRET))
    manifest = read_manifest(root)
    with pytest.raises(HoneError) as refused:
        verify(root, manifest.model_copy(update={"files": files | {path: content}}))
    assert refused.value.reason.name == "ArtifactCorrupt"
    assert repr(path) in refused.value.message
    assert refused.value.format_message().isprintable()


def test_one_listed_file_can_not_stand_for_several(root: Path) -> None:
    """The digest is made of lines, and a line break in a name would give other files the same digest."""
    files = describe_files(root, ["adapter", "merged"])
    (first, *others) = sorted(files.items())
    name = first[0] + "".join(f"\n{digest.sha256}  {path}" for path, digest in others)
    forged = {name: first[1]}
    assert compute_files_digest(forged) == compute_files_digest(files)
    with pytest.raises(HoneError, match="has a character"):
        verify(root, read_manifest(root).model_copy(update={"files": forged}))


def test_names_are_compared_letter_by_letter(root: Path) -> None:
    files = describe_files(root, ["adapter", "merged"])
    seal(root, "both", files=files | {"adapter/readme.md": files["adapter/README.md"]})
    assert refusal(root).message == f"{root / 'adapter/readme.md'} is missing"
    (root / "adapter/caf\u00e9").write_bytes(b"")
    seal(root, "both")
    check(root)
    (root / "adapter/caf\u00e9").rename(root / "adapter/cafe\u0301")
    refusal(root)


def test_files_that_a_loader_needs_are_listed_or_refused_by_name(tmp_path: Path) -> None:
    """For each kind and folder: without its configuration, and without weights."""
    for kind in get_args(ArtifactKind):
        for folder in list_folders(kind):
            config = "adapter_config.json" if folder == "adapter" else "config.json"
            for lacking in (f"{folder}/{config}", "weights"):
                root = make_tree(tmp_path / f"{kind} {folder} {lacking.rpartition('/')[2]}" / "tree", kind)
                for path in (root / folder).iterdir():
                    if path.name == config if lacking != "weights" else path.suffix == ".safetensors":
                        path.unlink()
                seal(root, kind)
                found = refusal(root).message
                assert lacking in found or f"{folder}/adapter_model.safetensors" in found, found
