"""The engine loads a folder only from that folder: missing files are never looked up on the hub."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hone_api.reasons import HoneError
from hone_server.artifacts.sources import ModelEntry, ModelSources, find_model_sources
from hone_server.weights.loader import load_adapter, load_adapter_tokenizer, load_base
from peft.utils import load_peft_weights

EMPTY = {"adapters": {}, "expected": {}, "claims": {}}


@pytest.fixture
def moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base_folder: Path, peft_folder: Path) -> Any:
    """Return a base and an adapter with a tokenizer, with relative names like those of repositories on the hub."""
    shutil.copytree(base_folder, tmp_path / "owner/base")
    shutil.copytree(peft_folder, tmp_path / "owner/adapter")
    for path in base_folder.glob("*token*"):
        shutil.copy(path, tmp_path / "owner/adapter")
    monkeypatch.chdir(tmp_path)
    return Path("owner")


def find(moved: Path) -> Any:
    return find_model_sources("owner/base", name=None, **{**EMPTY, "adapters": {"legal": moved / "adapter"}})


def refusal(moved: Path) -> HoneError:
    with pytest.raises(HoneError) as error:
        load(find(moved))
    return error.value


def load(sources: ModelSources) -> None:
    base = load_base(sources, with_adapters=True)
    for served in sources.entries:
        if served.folder:
            load_adapter(base, served)
            load_adapter_tokenizer(base, served.folder)


@pytest.mark.parametrize("lacking", ["model.safetensors", "tokenizer.json", "tokenizer_config.json", "config.json"])
def test_a_base_is_loaded_from_its_folder_alone(moved: Any, outgoing: list[str], lacking: str) -> None:
    (moved / "base" / lacking).unlink()
    reason = "none"
    try:
        load(find_model_sources("owner/base", name=None, **EMPTY))
    except HoneError as error:
        reason = error.reason.name
    needed = not lacking.startswith("tokenizer")  # one of the two files of a tokenizer is enough
    assert reason in (("ModelNotFound", "ModelInvalid", "ArtifactMissing") if needed else ("none", "ModelNotFound"))
    assert outgoing == []


def test_an_adapter_is_loaded_from_its_folder_alone(moved: Any, outgoing: list[str]) -> None:
    weights = load_peft_weights("owner/adapter", "cpu")
    (moved / "adapter/adapter_model.safetensors").unlink()
    error = refusal(moved)
    assert (error.reason.name, "has neither adapter_model.safetensors nor" in error.message) == (
        "ArtifactCorrupt",
        True,
    )
    torch.save(weights, moved / "adapter/adapter_model.bin")
    sources = find(moved)
    base = load_base(sources, with_adapters=True)
    assert load_adapter(base, sources.entries[1])
    assert load_adapter(base, ModelEntry("legal", "adapter", "owner/adapter", folder=moved / "adapter"))
    assert load_adapter_tokenizer(base, moved / "adapter")
    assert outgoing == []


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("tokenizer.json", b"junk", "ArtifactCorrupt"),
        ("tokenizer_config.json", b"[]", "ArtifactCorrupt"),
        ("adapter_model.safetensors", b"junk", "ArtifactCorrupt"),
        ("adapter_model.safetensors", b"", "ArtifactCorrupt"),
    ],
)
def test_files_of_an_adapter_that_cannot_be_read_are_named(
    moved: Any, outgoing: list[str], file: str, content: bytes, reason: str
) -> None:
    (moved / "adapter" / file).write_bytes(content)
    assert refusal(moved).reason.name == reason
    assert outgoing == []


@pytest.mark.parametrize("kind", ["XLORA", "PROMPT_TUNING", "CPT"])
def test_kinds_of_adapters_that_name_other_places_are_refused(moved: Any, outgoing: list[str], kind: str) -> None:
    config = {"peft_type": kind, "task_type": "CAUSAL_LM", "adapters": {"0": "owner/other"}, "num_virtual_tokens": 1}
    config |= {"tokenizer_name_or_path": "owner/other", "prompt_tuning_init": "TEXT", "prompt_tuning_init_text": "a"}
    (moved / "adapter/adapter_config.json").write_text(json.dumps(config))
    assert refusal(moved).reason.name == "AdapterMismatch"
    assert outgoing == []
