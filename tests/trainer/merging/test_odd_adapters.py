"""`hone merge` with wrong adapters, bases and outputs: each is refused by name, and none contacts the hub."""

import copy
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hone_api.reasons import HoneError
from hone_trainer.main import merge_and_report as run_merge
from hone_trainer.merging.source import find_adapter
from hone_trainer.models import lora
from hone_trainer.runtime.options import MergeOptions
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

CORRUPT, MISMATCH, NO_MODEL, INVALID = "ArtifactCorrupt", "AdapterMismatch", "ModelNotFound", "InvalidSpec"


@pytest.fixture(scope="module")
def base(claim: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(claim / "tiny")


@pytest.fixture(scope="module")
def good(claim: Path, base: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the folder of an adapter with its own tokenizer."""
    folder = tmp_path_factory.mktemp("good") / "adapter"
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    get_peft_model(copy.deepcopy(base), lora).save_pretrained(folder)
    AutoTokenizer.from_pretrained(claim / "tiny").save_pretrained(folder)
    return folder


def changed(good: Path, folder: Path, **config: Any) -> Path:
    shutil.copytree(good, folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder


def refusal(capsys: pytest.CaptureFixture[str], options: MergeOptions) -> tuple[str, str]:
    """Merge as the command does; return the reason and all of the output."""
    capsys.readouterr()
    code = run_merge(options)
    printed = capsys.readouterr().err
    assert code not in (0, 70), printed
    assert "Traceback" not in printed
    return printed.partition("error: ")[2].split()[0], printed


@pytest.mark.parametrize("weights", ["adapter_model.safetensors", "adapter_model.bin", None])
def test_an_adapter_is_loaded_only_from_its_folder(
    good: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    outgoing: list[str],
    weights: str | None,
) -> None:
    """Name the folder relatively, as a repository on the hub is named."""
    folder = changed(good, tmp_path / "owner/name")
    if weights != "adapter_model.safetensors":
        tensors, _ = lora.load_files(folder)[1], (folder / "adapter_model.safetensors").unlink()
        if weights:
            torch.save(tensors, folder / weights)
    monkeypatch.chdir(tmp_path)
    options = MergeOptions(Path("owner/name"), tmp_path / "out")
    if weights:
        assert run_merge(options) == 0
    else:
        reason, printed = refusal(capsys, options)
        assert (reason, "has neither adapter_model.safetensors nor" in printed) == (CORRUPT, True)
    assert outgoing == []


@pytest.mark.parametrize("lacking", ["model.safetensors", "tokenizer.json", "tokenizer_config.json", "config.json"])
def test_a_base_is_loaded_only_from_its_folder(
    good: Path,
    claim: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    outgoing: list[str],
    lacking: str,
) -> None:
    folder = shutil.copytree(claim / "tiny", tmp_path / "owner/name")
    (folder / lacking).unlink()
    adapter = changed(good, tmp_path / "adapter")
    for path in adapter.glob("*token*"):
        path.unlink()
    monkeypatch.chdir(tmp_path)
    refused = run_merge(MergeOptions(adapter, tmp_path / "out", base="owner/name"))
    assert refused == 66 or lacking.startswith("tokenizer"), capsys.readouterr().err
    assert refused != 70
    assert outgoing == []


@pytest.mark.parametrize(
    "name",
    [
        "a\0b",
        "https://hub.example/x",
        "/" + "a" * 5000,
        "a" * 5000,
        "a/b/c",
        "../../etc",
        "\x1b[31mx",
        "a b",
        "/dev/null",
    ],
    ids=repr,
)
def test_a_base_without_a_valid_name_is_refused(
    good: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    outgoing: list[str],
    name: str,
) -> None:
    folder = changed(good, tmp_path / "adapter", base_model_name_or_path=name)
    for options in (MergeOptions(folder, tmp_path / "out"), MergeOptions(good, tmp_path / "out", base=name)):
        reason, printed = refusal(capsys, options)
        assert (reason, "The base model is " in printed, "--base" in printed) == (NO_MODEL, True, True)
    assert outgoing == []


def as_tensors(tensors: Any) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "adapter_model.safetensors").unlink()
        torch.save(tensors, folder / "adapter_model.bin")

    return write


def as_file(name: str, content: bytes) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        if name.endswith(".bin"):
            (folder / "adapter_model.safetensors").unlink()
        (folder / name).write_bytes(content)

    return write


DEEP = b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
SPOILED = {
    "empty weights": as_file("adapter_model.safetensors", b""),
    "weights of no format": as_file("adapter_model.safetensors", b"\xff" * 16),
    "weights with a header beyond the file": as_file("adapter_model.safetensors", (2**40).to_bytes(8, "little")),
    "pickled junk": as_file("adapter_model.bin", b"junk"),
    "pickled code": as_file("adapter_model.bin", pickle.dumps(os.system)),
    "pickled list": as_tensors([1, 2]),
    "pickled numbers": as_tensors({"a": 1, 2: "x"}),
    "deep configuration": as_file("adapter_config.json", DEEP),
    "tokenizer of no format": as_file("tokenizer.json", b"junk"),
    "tokenizer configuration that is a list": as_file("tokenizer_config.json", b"[]"),
    "deep tokenizer configuration": as_file("tokenizer_config.json", DEEP),
    "unknown tokenizer": as_file("tokenizer_config.json", b'{"tokenizer_class": 5}'),
}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
def test_files_that_cannot_be_read_are_corrupt(
    good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: Callable[[Path], None]
) -> None:
    folder = changed(good, tmp_path / "adapter")
    spoil(folder)
    reason, printed = refusal(capsys, MergeOptions(folder, tmp_path / "out"))
    assert (reason, str(folder) in printed.partition("error: ")[2]) == (CORRUPT, True), printed


NUMBERS: list[Any] = [None, True, 0, -1, 3, 2**63, 1e308]
TEXTS: list[Any] = ["", "x", "(", "eva", "pissa", "loftq", "gaussian"]
LISTS: list[Any] = [[], [1], [10**9], [None], ["q_proj"], [[0, 1]], [["a"]]]
OBJECTS: list[Any] = [{}, {"(": 4}, {"a": 1}, {"q_proj": 1}, {"a": [1]}, {"": None}]
VALUES = st.sampled_from([*NUMBERS, *TEXTS, *LISTS, *OBJECTS])
FIELDS = st.sampled_from(sorted(LoraConfig().to_dict()))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(fields=st.dictionaries(FIELDS, VALUES, min_size=1, max_size=2))
def test_any_configuration_is_merged_or_refused_with_a_name(
    good: Path, base: Any, tmp_path: Path, fields: dict[str, Any]
) -> None:
    shutil.rmtree(tmp_path / "adapter", ignore_errors=True)
    folder = changed(good, tmp_path / "adapter", **fields)
    reason = "none"
    try:
        found = find_adapter(folder, "owner/name")
        lora.merge_adapter(lora.add_adapter(copy.deepcopy(base), *lora.load_files(found.folder)))
    except HoneError as error:
        reason = error.reason.name
    assert reason in ("none", CORRUPT, MISMATCH, INVALID)


def test_an_output_that_cannot_be_written_is_refused_before_anything_is_loaded(
    good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("x")
    for out in (tmp_path / "file/x/out", tmp_path / ("a" * 300), tmp_path / ("a" * 252), Path("/proc/x/out")):
        reason, printed = refusal(capsys, MergeOptions(good, out))
        assert (reason, f"OUT is {out}, which can't be written" in printed) == (INVALID, True)
        assert "base model" not in printed
    (tmp_path / "deep/er").mkdir(parents=True)
    refusal(capsys, MergeOptions(good, tmp_path / "deep/er/still/out", base="/not/there"))
    assert list((tmp_path / "deep/er").iterdir()) == []
