"""Finding the served models from the command line and the artifacts' manifests."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hone_api.artifacts.manifest import BaseModelReference, read_manifest
from hone_api.reasons import HoneError
from hone_server.artifacts.sources import ModelEntry, find_model_sources


def find(model: Any, **options: Any) -> Any:
    return find_model_sources(str(model), **{"name": None, "adapters": {}, "expected": {}, "claims": {}, **options})


@pytest.fixture
def sealed(tmp_path: Path, seal_tree: Any) -> Any:
    """Write an artifact of one small file each, of the given kind."""

    def make(kind: Any, base: Any = None, name: str = "job") -> Any:
        tree = tmp_path / name
        for part in ("adapter", "merged", "model"):
            (tree / part).mkdir(parents=True, exist_ok=True)
            for file in ("adapter_model.safetensors", "adapter_config.json", "config.json"):
                (tree / part / file).write_bytes(b'{"of": "%s"}' % part.encode())
        seal_tree(tree, kind, base or BaseModelReference(name="org/base", revision="abc"), job="support")
        return tree

    return make


def reason(error: Any) -> Any:
    return error.value.reason.name


@pytest.mark.parametrize("kind", ["adapter", "both"])
def test_an_adapter_is_served_beside_its_base_from_the_artifacts_cache(sealed: Any, kind: str) -> None:
    tree = sealed(kind)
    found = find(tree)
    digest = read_manifest(tree).digest
    assert (found.weights_source, found.revision, found.cache_folder) == ("org/base", "abc", tree / "cache")
    assert found.entries == [
        ModelEntry("org/base", "base", "org/base"),
        ModelEntry("support", "adapter", str(tree), "org/base", digest, tree / "adapter"),
    ]


@pytest.mark.parametrize("kind", ["merged", "model"])
def test_merged_and_full_models_are_served_alone(sealed: Any, kind: str) -> None:
    tree = sealed(kind)
    found = find(tree, name="mine")
    assert found.weights_source == str(tree / kind)
    assert found.entries == [ModelEntry("mine", kind, str(tree), None, read_manifest(tree).digest)]


def test_a_base_on_a_claim_is_read_from_the_claims_folder(sealed: Any, tmp_path: Path) -> None:
    tree = sealed("adapter", BaseModelReference(claim="models", path="llama/chat"))
    found = find(tree, claims={"models": tmp_path})
    assert found.weights_source == str(tmp_path / "llama/chat")
    assert found.entries[0].name == "chat"


def test_without_claims_the_base_is_the_folder_that_the_adapter_was_trained_on(
    sealed: Any, tmp_path: Path, seal_tree: Any
) -> None:
    base = BaseModelReference(claim="models", path="llama/chat")
    tree, trained_on = sealed("adapter", base), tmp_path / "llama"
    config = {"base_model_name_or_path": str(trained_on)}
    (tree / "adapter/adapter_config.json").write_text(json.dumps(config))
    seal_tree(tree, "adapter", base, job="support")
    with pytest.raises(HoneError, match="the base model is on claim"):
        find(tree)
    trained_on.mkdir()
    (trained_on / "config.json").write_text("{}")
    assert find(tree).weights_source == str(trained_on)
    assert find(tree).entries[0].name == "chat"
    with pytest.raises(HoneError, match="the claims given are: other"):
        find(tree, claims={"other": tmp_path})


def test_a_claim_that_is_not_given_is_named(sealed: Any) -> None:
    with pytest.raises(HoneError) as error:
        find(sealed("adapter", BaseModelReference(claim="models")))
    assert reason(error) == "ModelNotFound"
    assert "--claim models=DIR" in error.value.format_message()


def test_a_folder_and_a_hub_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert find(tmp_path).entries == [ModelEntry(tmp_path.name, "base", str(tmp_path))]
    assert find("org/name").entries == [ModelEntry("org/name", "base", "org/name")]


def test_a_folder_with_no_model_is_not_taken_for_a_hub_name(tmp_path: Path) -> None:
    with pytest.raises(HoneError) as error:
        find(tmp_path)
    assert reason(error) == "ArtifactMissing"


def test_a_changed_file_is_corrupt_and_named(sealed: Any) -> None:
    tree = sealed("merged")
    (tree / "merged" / "adapter_model.safetensors").write_bytes(b"MERGED")
    with pytest.raises(HoneError) as error:
        find(tree)
    assert reason(error) == "ArtifactCorrupt"
    assert "adapter_model.safetensors" in error.value.message


def test_a_digest_that_is_not_the_expected_one_is_corrupt(sealed: Any) -> None:
    tree = sealed("adapter")
    assert find(tree, expected={"support": read_manifest(tree).digest})
    with pytest.raises(HoneError) as error:
        find(tree, expected={"support": "sha256:other"})
    assert reason(error) == "ArtifactCorrupt"
    assert "sha256:other" in error.value.message


def test_a_digest_can_not_be_expected_of_what_has_none_or_is_not_served(sealed: Any) -> None:
    with pytest.raises(HoneError, match="has no manifest"):
        find("org/base", expected={"org/base": "sha256:x"})
    with pytest.raises(HoneError, match="not served"):
        find("org/base", expected={"other": "sha256:x"})


def test_an_adapter_of_another_base_is_refused(sealed: Any) -> None:
    with pytest.raises(HoneError) as error:
        find("org/other", adapters={"support": sealed("adapter")})
    assert reason(error) == "AdapterMismatch"


def test_an_adapter_of_another_commit_is_refused(sealed: Any) -> None:
    trained, other = "a" * 40, "b" * 40
    tree = sealed("adapter", BaseModelReference(name="org/base", revision=trained))
    for revision in (trained, "main", None):
        assert find("org/base", adapters={"support": tree}, revision=revision)
    with pytest.raises(HoneError, match=f"at {trained}, and {other} is served") as error:
        find("org/base", adapters={"support": tree}, revision=other)
    assert reason(error) == "AdapterMismatch"


def test_the_adapter_in_an_artifact_has_the_artifacts_digest_also_by_a_link(sealed: Any, tmp_path: Path) -> None:
    tree = sealed("both")
    link = tmp_path / "link"
    link.symlink_to(tree / "adapter")
    (tree / "merged" / "adapter_model.safetensors").write_bytes(b"not read for it")
    for folder in (tree, tree / "adapter", link):
        served = find("org/base", adapters={"support": folder}).entries[1]
        assert (served.digest, served.folder) == (read_manifest(tree).digest, tree / "adapter")
    (tree / "adapter" / "adapter_model.safetensors").write_bytes(b"changed")
    with pytest.raises(HoneError) as error:
        find("org/base", adapters={"support": link})
    assert reason(error) == "ArtifactCorrupt"


def test_a_merged_model_is_no_adapter(sealed: Any) -> None:
    with pytest.raises(HoneError) as error:
        find("org/base", adapters={"support": sealed("merged")})
    assert reason(error) == "AdapterMismatch"


def test_two_models_of_one_name_are_refused(sealed: Any) -> None:
    tree = sealed("adapter")
    copy = shutil.copytree(tree, tree.parent / "copy")
    with pytest.raises(HoneError) as error:
        find(tree, adapters={"support": copy})
    assert reason(error) == "InvalidSpec"


@pytest.mark.parametrize(("kind", "part"), [("merged", "merged"), ("model", "model"), ("both", "merged")])
def test_the_model_in_an_artifact_has_the_artifacts_digest_also_by_a_link(
    sealed: Any, tmp_path: Path, kind: str, part: str
) -> None:
    tree = sealed(kind)
    (tree / part / "generation_config.json").write_text("{}")
    link = tmp_path / "link"
    link.symlink_to(tree / part)
    for folder in (tree / part, link):
        with pytest.raises(HoneError, match=r"generation_config\.json is not listed"):
            find(folder)
    (tree / part / "generation_config.json").unlink()
    for folder in (tree / part, link):
        found = find(folder)
        assert found.weights_source == str(tree / part)
        assert found.entries == [ModelEntry("support", part, str(folder), None, read_manifest(tree).digest)]


def test_a_base_in_an_artifact_is_proved_as_well(sealed: Any, tmp_path: Path) -> None:
    base = sealed("merged", name="before")
    tree = sealed("adapter", BaseModelReference(claim="models", path="before/merged"))
    assert find(tree, claims={"models": tmp_path})
    (base / "merged" / "adapter_model.safetensors").write_bytes(b"MERGED")
    with pytest.raises(HoneError) as error:
        find(tree, claims={"models": tmp_path})
    assert reason(error) == "ArtifactCorrupt"
