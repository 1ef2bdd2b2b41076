"""Manifest files are read as kubectl reads them."""

from pathlib import Path
from typing import Any

import pytest
from hone_api.reasons import HoneError
from hone_api.schema.manifests import load_documents


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
        ("2024-01-01T10:00:00Z", "2024-01-01T10:00:00Z"),
        ("1:30", "1:30"),
        ("12:30:45.5", "12:30:45.5"),
        ("0644", 420),
        ("0o644", 420),
        ("0x1F", 31),
        ("08", 8.0),
        ("1_000", 1000),
        ("-5", -5),
        ("yes", True),
        ("=", "="),
        ("~", None),
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
        ("a: 1\nb: 2\na: 3\n", "key 'a' stands twice, line 3"),
        ("a: !!python/object:os.system x\n", "is not YAML: the tag 'python/object:os.system' is not one .*line 1"),
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


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("? [a, b]\n: c\n", "a key must be a string, line 1"),
        ("a: 1\n{b: 2}: 3\n", "a key must be a string, line 2"),
        ("~: 1\n", "a key must be a string"),
        ("a: " + "9" * 5000 + "\n", "can't be read as int, line 1"),
        ("a: 1e999\n", "can't be read as float, line 1"),
        ("a: .inf\n", "can't be read as float, line 1"),
        ("a: !!int x\n", "can't be read as int, line 1"),
        ("a: !!int ''\n", "can't be read as int, line 1"),
        ("a: !!bool maybe\n", "can't be read as bool, line 1"),
        ("a: !!binary aGk=\n", "the tag 'binary' is not one"),
        ("a: !!set {b}\n", "the tag 'set' is not one"),
        ("a: !!timestamp 2024-01-01\n", "the tag 'timestamp' is not one"),
        ("a: !!str [b]\n", "expected a scalar node"),
        ("a: !!map b\n", "expected a mapping node"),
        ("a: 1\nb: &x {y: *x}\n", "an alias stands for a value that holds the alias, line 2"),
        ("a: &x [*x]\n", "an alias stands for a value that holds the alias"),
        ("a: 1\n1: b\n'1': c\n", "key '1' stands twice, line 3"),
        ("a: {b: 1, b: 2}\n", "key 'b' stands twice, line 1"),
        ("a: " + "[" * 5000, "more than 100 levels"),
        ("a: " + "{b: " * 5000, "more than 100 levels"),
        ("- " * 5000 + "a\n", "more than 100 levels"),
        ("a: [" + "1," * 200_000 + "]", "more than 100,000 values"),
        ("a: b\n\tc: d\n", "line 2"),
        ("a: b\nc: \0\n", "line 2 has the character U\\+0000"),
        ("a: b\nc: \x1b[2J\n", "line 2 has the character U\\+001B"),
        ('a: "\\ud83d"\n', "half of a surrogate pair"),
    ],
)
def test_values_that_kubernetes_objects_cannot_hold_are_refused(file: Path, content: str, sentence: str) -> None:
    file.write_text(content)
    with pytest.raises(HoneError, match=sentence):
        load_documents(file)


def test_aliases_that_stand_for_too_many_values_are_refused(file: Path) -> None:
    levels = "".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]\n" for n in range(1, 30))
    merged = "".join(f"m{n}: &m{n} {{<<: [{', '.join([f'*m{n - 1}'] * 9)}]}}\n" for n in range(1, 30))
    deep = "".join(f"d{n}: &d{n} {{x: {{y: {{z: *d{n - 1}}}}}}}\n" for n in range(1, 60))
    for content in (f"l0: &l0 [a]\n{levels}", f"m0: &m0 {{a: 1}}\n{merged}", f"d0: &d0 {{x: 1}}\n{deep}"):
        file.write_text(content)
        with pytest.raises(HoneError, match=r"100,000 values|100 levels"):
            load_documents(file)


def test_a_mapping_that_is_merged_twice_may_override(file: Path) -> None:
    file.write_text("a: &a {x: 1, 2: b}\nb: &b {<<: *a, x: 2}\nc: {<<: [*b, *a], x: 3}\nd: {<<: *b}\n")
    a, b = {"x": 1, "2": "b"}, {"x": 2, "2": "b"}
    assert load_documents(file) == [{"a": a, "b": b, "c": b | {"x": 3}, "d": b}]


def test_json_with_characters_in_pairs(file: Path) -> None:
    file.write_text('{"a": "\\ud83d\\ude00"}')
    assert load_documents(file) == [{"a": "\N{GRINNING FACE}"}]


def test_large_files_are_refused_and_long_text_is_read(file: Path) -> None:
    file.write_text("a: |\n" + "  some text of a dataset\n" * 40_000)
    assert len(load_documents(file)[0]["a"]) == 40_000 * 23
    file.write_bytes(b"#" * (5 * 1024 * 1024))
    with pytest.raises(HoneError, match="larger than 4 MiB"):
        load_documents(file)


def test_folders_and_other_encodings_are_named(file: Path, tmp_path: Path) -> None:
    with pytest.raises(HoneError, match="can't be read: Is a directory"):
        load_documents(tmp_path)
    file.write_bytes("a: 1\n".encode("utf-16"))
    with pytest.raises(HoneError, match="line 1 is not UTF-8; it looks like UTF-16"):
        load_documents(file)
    file.write_bytes(b"a: 1\nb: caf\xe9\n")
    with pytest.raises(HoneError, match="line 2 is not UTF-8"):
        load_documents(file)
    file.write_bytes(b"\xef\xbb\xbfa: 1\r\n")
    assert load_documents(file) == [{"a": 1}]


def test_a_missing_file(file: Path) -> None:
    with pytest.raises(HoneError, match="can't be read: No such file"):
        load_documents(file)


def test_a_binary_file(file: Path) -> None:
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(HoneError, match="is not YAML"):
        load_documents(file)
