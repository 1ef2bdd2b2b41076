"""Proving artifacts and linking what an engine loads."""

import json
from pathlib import Path
from typing import Any

import pytest
from hone_api.artifacts.manifest import (
    ArtifactManifest,
    BaseModelReference,
    compute_files_digest,
    describe_files,
    write_manifest,
)
from hone_server.adapter_sidecar.link_artifacts import main

TRAINED, OTHER = "c" * 40, "d" * 40
WEIGHTS = "adapter_model.safetensors"  # a name that holds a model's weights as well
LORA = {"peft_type": "LORA", "r": 8, "bias": "none"}


def tree(root: Path, kind: str = "adapter", base: BaseModelReference | None = None, **config: Any) -> tuple[str, str]:
    """Return an artifact; returns its folder and digest."""
    folders = {"adapter": ["adapter"], "both": ["adapter", "merged"]}.get(kind, [kind])
    for folder in folders:
        (root / folder).mkdir(parents=True)
        (root / folder / WEIGHTS).write_bytes(b"weights")
        name = "adapter_config.json" if folder == "adapter" else "config.json"
        (root / folder / name).write_text(json.dumps(LORA | config))
    files = describe_files(root, folders)
    write_manifest(
        root,
        ArtifactManifest.model_validate(
            {
                "kind": kind,
                "job": "faq",
                "digest": compute_files_digest(files),
                "base_model": base or BaseModelReference(name="org/base", revision=TRAINED),
                "dataset_fingerprint": "0",
                "files": files,
                "metrics": {},
                "parameters": {},
                "versions": {},
                "spec": {},
            }
        ),
    )
    return str(root), compute_files_digest(files)


def test_links_lead_to_the_verified_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "adapter_config.json").write_text(json.dumps(LORA))
    root, digest = tree(tmp_path / "faq")
    into = tmp_path / "served"
    arguments = ["--into", str(into), "--model", str(base), "--base", "org/base", "--base-revision", TRAINED]
    arguments += ["--adapter", f"faq={root}", "--expect", f"faq={digest}", "--adapter", f"plain={plain}"]
    for _ in range(2):  # an init container may run again in the same pod
        assert main([*arguments, "--max-rank", "8"]) == 0
    assert (into / "model").resolve() == base
    assert (into / f"adapters/faq-{digest[7:19]}").resolve() == Path(root) / "adapter"
    assert (into / "adapters/plain").resolve() == plain
    assert f"{root} is {digest}: " in capsys.readouterr().err


@pytest.mark.parametrize(("kind", "folder"), [("merged", "merged"), ("model", "model"), ("both", "merged")])
def test_the_model_of_an_artifact(tmp_path: Path, kind: str, folder: str) -> None:
    root, digest = tree(tmp_path / "faq", kind)
    into = tmp_path / "served"
    assert main(["--into", str(into), "--model", root, "--expect-model", digest]) == 0
    assert (into / f"model-{digest[7:19]}").resolve() == Path(root) / folder


@pytest.mark.parametrize(
    ("config", "arguments", "words"),
    [
        ({"use_dora": True}, [], "has use_dora true"),
        ({"modules_to_save": ["lm_head"]}, [], 'has modules_to_save ["lm_head"]'),
        ({"bias": "all"}, [], 'has bias "all"'),
        ({"peft_type": "IA3"}, [], 'has peft_type "IA3"'),
        ({"r": 16}, ["--max-rank", "8"], "rank 16, and the engine is started for ranks up to 8"),
        ({"rank_pattern": {"q_proj": 32}}, ["--max-rank", "8"], "rank 32"),
        ({}, ["--base", "org/other"], "trained on org/base, and the service's model is org/other"),
        (
            {},
            ["--base", "org/base", "--base-revision", OTHER],
            f"trained on org/base at {TRAINED}, and {OTHER} is served",
        ),
    ],
)
def test_an_adapter_that_does_not_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], config: dict[str, Any], arguments: list[str], words: str
) -> None:
    root, _ = tree(tmp_path / "faq", **config)
    assert main(["--into", str(tmp_path / "served"), "--adapter", f"faq={root}", *arguments]) == 65
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("hone-place: AdapterMismatch: Adapter faq ")
    assert words in said


def test_a_missing_or_changed_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, digest = tree(tmp_path / "faq")
    into = ["--into", str(tmp_path / "served")]
    other = "sha256:" + "0" * 64
    assert main([*into, "--adapter", f"faq={root}", "--expect", f"faq={other}"]) == 65
    assert f"should have digest {other}, and its manifest has {digest}" in capsys.readouterr().err
    (Path(root) / "adapter" / WEIGHTS).write_bytes(b"changed")
    assert main([*into, "--adapter", f"faq={root}"]) == 65
    assert "hone-place: ArtifactCorrupt: " in capsys.readouterr().err
    assert main([*into, "--model", str(tmp_path / "none")]) == 66
    assert "hone-place: ArtifactMissing: " in capsys.readouterr().err
    assert main([*into, "--adapter", f"faq={tmp_path}", "--expect", f"faq={digest}"]) == 66


@pytest.mark.parametrize(("option", "part"), [("--adapter", "adapter"), ("--model", "merged")])
def test_a_folder_inside_an_artifact_is_proved_by_its_manifest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, part: str
) -> None:
    root, digest = tree(tmp_path / "faq", "both")
    folder = Path(root) / part
    arguments = ["--into", str(tmp_path / "served"), option, f"faq={folder}" if part == "adapter" else str(folder)]
    expect = ["--expect", f"faq={digest}"] if part == "adapter" else ["--expect-model", digest]
    assert main([*arguments, *expect]) == 0
    link = "adapters/faq" if part == "adapter" else "model"
    assert (tmp_path / f"served/{link}-{digest[7:19]}").resolve() == folder
    (folder / WEIGHTS).write_bytes(b"changed")
    assert main(arguments) == 65
    assert "hone-place: ArtifactCorrupt: " in capsys.readouterr().err
