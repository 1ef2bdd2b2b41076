"""adapter_config.json of others: read with its types, or refused naming the file and the field."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from garbage import GARBAGE
from hone_api.artifacts.adapter_config import AdapterConfig, read_adapter_config
from hone_api.reasons import HoneError
from hone_server.adapter_sidecar.link_artifacts import main

LORA = {"peft_type": "LORA", "r": 8, "base_model_name_or_path": "org/base"}
PEFT_ALONE = {"runtime_config", "loftq_config", "init_lora_weights", "not_a_field"}


def write(folder: Path, content: Any) -> Path:
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / "adapter_config.json").write_text(text)
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises(HoneError) as refused:
        read_adapter_config(folder)
    assert refused.value.reason.name == "ArtifactCorrupt"
    assert str(folder / "adapter_config.json") in refused.value.message
    return refused.value.message


@pytest.mark.parametrize("field", sorted(AdapterConfig.model_fields.keys() | PEFT_ALONE))
def test_any_value_of_a_field_is_read_or_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], field: str
) -> None:
    refused = 0
    for value in [*GARBAGE, {"a": None}, {"a": "8"}, {"a": 8}, [[0, 1]], "LORA", "abc", 8.5]:
        folder = write(tmp_path, LORA | {field: value})
        code = main(["--into", str(tmp_path / "into"), "--adapter", f"x={folder}", "--max-rank", "8"])
        printed = capsys.readouterr().err
        assert code == 0 or printed.startswith(("hone-place: ArtifactCorrupt: ", "hone-place: AdapterMismatch: "))
        if "ArtifactCorrupt" in printed:
            refused += 1
            assert f"has the field {field} " in refusal(folder)
    assert (refused > 0) is (field not in PEFT_ALONE)


@pytest.mark.parametrize(
    "content", ["", "[1]", "null", '"LORA"', "1", "{", '{"r": 1, "r": 2}', '{"r": NaN}', "[" * 9999]
)
def test_a_file_without_a_json_object_is_refused(tmp_path: Path, content: str) -> None:
    refusal(write(tmp_path, content))


def test_the_field_of_a_wrong_value_inside_another_is_named(tmp_path: Path) -> None:
    assert "has the field rank_pattern {'a': None}: " in refusal(write(tmp_path, LORA | {"rank_pattern": {"a": None}}))


def test_a_path_that_is_no_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "adapter_config.json"
    refusal(tmp_path)
    path.symlink_to(path)
    refusal(tmp_path)
    path.unlink()
    os.mkfifo(path)
    assert "not a regular file" in refusal(tmp_path)


def test_other_kinds_of_adapters_may_have_other_fields(tmp_path: Path) -> None:
    assert read_adapter_config(write(tmp_path, {"peft_type": "IA3", "r": "none"})).peft_type == "IA3"


def test_a_file_that_is_a_link_is_read(tmp_path: Path) -> None:
    (tmp_path / "blob").write_text(json.dumps(LORA | {"rank_pattern": {"q_proj": 16}}))
    (tmp_path / "adapter_config.json").symlink_to("blob")
    assert read_adapter_config(tmp_path).largest_rank == 16
