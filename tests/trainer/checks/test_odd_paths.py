"""Folders, columns and manifests that are legal, and too odd or too large for a library."""

import os
from pathlib import Path

import pytest
from hone_api.reasons import HoneError
from hone_api.schema.manifests import load_documents
from hone_api.schema.validation import validate_object
from hone_trainer.data.formats import RowLayout, find_unused
from hone_trainer.inputs.manifest import refuse_non_utf8_folder


def test_a_folder_whose_path_is_not_utf8_is_refused_by_name() -> None:
    with pytest.raises(HoneError) as refused:
        refuse_non_utf8_folder("--output", Path(os.fsdecode(b"/a/\xff")))
    assert refused.value.message == "--output is /a/\\udcff, whose path is not UTF-8"
    refuse_non_utf8_folder("--output", Path("/a/é 😀"))


@pytest.mark.parametrize("code", ["00110000", "7FFFFFFF", "80000000", "FFFFFFFF"])
def test_an_escape_beyond_unicode_is_refused(tmp_path: Path, code: str) -> None:
    (tmp_path / "a.yaml").write_text(f'kind: "\\U{code}"\n')
    with pytest.raises(HoneError, match="no character of Unicode"):
        load_documents(tmp_path / "a.yaml")


@pytest.mark.parametrize("digits", [19, 20, 309, 400])
@pytest.mark.parametrize("sign", [1, -1])
def test_an_integer_of_any_size_is_refused_by_its_field(digits: int, sign: int) -> None:
    job = {"apiVersion": "hone.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "a"}}
    spec = {"model": {"name": "a/b"}, "dataset": {"name": "a/b"}, "training": {"maxSteps": sign * 10**digits}}
    assert any("spec.training.maxSteps" in problem for problem in validate_object({**job, "spec": spec}))


@pytest.mark.parametrize("columns", [0, 10, 11, 5000])
def test_unused_columns_are_named_or_counted(columns: int) -> None:
    found = {"text": 3} | {f"c{number}": 3 for number in range(columns)}
    warnings = find_unused(RowLayout("text", {"text": "text"}), found, 3)
    assert len(warnings) == min(columns, 11)
    if columns > 10:
        assert warnings[-1].startswith(f"{columns - 10} more columns are not used")
