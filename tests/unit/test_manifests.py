"""Reading manifest files, as kubectl reads them."""

from pathlib import Path
from typing import Any

import pytest
from hone_api.manifests import load_documents
from hone_api.reasons import HoneError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "job.yaml"


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("2e-4", 2e-4),
        ("1E5", 1e5),
        ("0.5", 0.5),
        (".5e1", 5.0),
        ("3", 3),
        ("2024-01-01", "2024-01-01"),
        ("1e", "1e"),
        ("q_proj", "q_proj"),
        ("v1.0", "v1.0"),
    ],
)
def test_scalars(file: Path, written: str, read: Any) -> None:
    file.write_text(f"value: {written}\n")
    assert load_documents(file) == [{"value": read}]


def test_many_documents_and_empty_ones(file: Path) -> None:
    file.write_text("---\na: 1\n---\n---\nb: 2\n")
    assert load_documents(file) == [{"a": 1}, {"b": 2}]


def test_json(file: Path) -> None:
    file.write_text('{"a": {"b": [1, 2.5e-3, null]}}')
    assert load_documents(file) == [{"a": {"b": [1, 0.0025, None]}}]


def test_anchors_and_merges(file: Path) -> None:
    file.write_text("a: &x {b: 1}\nc: {<<: *x, d: 2}\n")
    assert load_documents(file) == [{"a": {"b": 1}, "c": {"b": 1, "d": 2}}]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "holds no object"),
        ("- a\n", "holds ['a'] where a Kubernetes object should be"),
        ("a: [1\nb: 2\n", "is not YAML: .*line 2"),
        ("a: 1\nb: 2\na: 3\n", "key 'a' stands twice .*line 3"),
        ("a: !!python/object:os.system x\n", "is not YAML: could not determine a constructor"),
    ],
)
def test_what_cannot_be_read_is_named(file: Path, content: str, sentence: str) -> None:
    import re

    file.write_text(content)
    with pytest.raises(HoneError) as refused:
        load_documents(file)
    assert refused.value.reason.name == "InvalidSpec"
    assert str(file) in refused.value.message
    assert re.search(sentence.replace("['a']", r"\['a'\]"), refused.value.message), refused.value.message


def test_a_missing_file(file: Path) -> None:
    with pytest.raises(HoneError, match="can't be read: No such file"):
        load_documents(file)


def test_a_binary_file(file: Path) -> None:
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(HoneError, match="is not YAML"):
        load_documents(file)
