"""The rows that the readers accept, and the file and line that they name for what they refuse."""

import contextlib
import csv
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hone_api.reasons import HoneError
from hone_trainer.data.readers import row_files
from hone_trainer.data.readers.csv_rows import suggest_header
from hone_trainer.data.readers.row_streams import FileStream, survey_columns
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

# More than any buffer in which a reader could decode ahead.
GOOD_LINES = 3000
PLACES = [1, 2, 1500, GOOD_LINES]


@pytest.fixture
def refuse(tmp_path: Path) -> Callable[[str, bytes], HoneError]:
    """Read a file to the end and return the failure."""

    def read(name: str, content: bytes) -> HoneError:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(HoneError) as refused:
            read_all(tmp_path / name)
        assert refused.value.reason.name == "DatasetInvalid"
        refused.value.format_message().encode()
        return refused.value

    return read


def read_all(*paths: Path) -> list[row_files.Row]:
    return list(row_files.read_rows([(path, path.name) for path in paths]))


def with_line(bad: bytes, number: int, good: bytes, first: bytes = b"") -> bytes:
    lines = [good] * GOOD_LINES
    lines[number - 1] = bad
    return first + b"".join(line + b"\n" for line in lines)


@pytest.mark.parametrize("number", PLACES)
@pytest.mark.parametrize(
    "bad",
    [
        b'{"text": "a\\ud83d b"}',
        b'{"text": "a\\uDE00 b"}',
        b'{"text": [{"deep": "\\udc00"}]}',
        b'{"\\ud83d": "key"}',
        b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"text": "a", "n": ' + b"9" * 5000 + b"}",
        b'{"text": "a", "text": "b"}',
        b'{"text": [{"role": "user", "role": "assistant"}]}',
        b'{"text": "caf\xe9"}',
        b'{"text": "\xed\xa0\xbd"}',
        b'{"text": "a"',
        b'["a"]',
        b"NaN",
    ],
)
def test_a_line_of_json_that_cannot_be_used_is_named(refuse: Any, bad: bytes, number: int) -> None:
    failure = refuse("train.jsonl", with_line(bad, number, b'{"text": "caf\xc3\xa9 \\ud83d\\ude00 C:\\\\udev"}'))
    assert f"train.jsonl, line {number}" in failure.message
    assert f"line {number}0" not in failure.message


@pytest.mark.parametrize("number", PLACES)
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("name", ["train.csv", "train.txt"])
def test_bytes_that_are_not_utf8_are_named_by_line(refuse: Any, name: str, end: bytes, number: int) -> None:
    content = with_line(b"one,caf\xe9", number, b"one,caf\xc3\xa9", b"a,b\n").replace(b"\n", end)
    failure = refuse(name, content)
    assert f"{name}, line {number + 1}, column 8 is not UTF-8" in failure.message


@pytest.mark.parametrize("number", PLACES)
@pytest.mark.parametrize(
    ("bad", "said"),
    [(b'"two" words,x', "is not CSV"), (b"one,two,three", "has 3 fields"), (b'one,"open', "never closed")],
)
def test_a_record_that_is_not_csv_is_named_by_line(refuse: Any, number: int, bad: bytes, said: str) -> None:
    failure = refuse("train.csv", with_line(bad, number, b"one,two", b"a,b\n"))
    assert f"train.csv, line {number + 1} " in failure.message
    assert said in failure.message


def test_a_file_in_utf16_is_named_as_such(refuse: Any) -> None:
    for name in ("a.jsonl", "a.json", "a.csv", "a.txt"):
        assert "it looks like UTF-16" in refuse(name, "text\none\n".encode("utf-16")).remedy


def test_a_header_that_names_a_column_twice_is_refused(refuse: Any) -> None:
    assert "names the column a twice" in refuse("a.csv", b"a,b,a\n1,2,3\n").message


def test_long_fields_and_columns_without_a_name_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f",a,\n0,{'x' * 200_000},\n")
    assert read_all(tmp_path / "a.csv") == [("a.csv, line 2", {"a": "x" * 200_000})]


@pytest.mark.parametrize(
    ("header", "row", "cell"),
    [
        ("a,b,", "q,one, two", "'two' in field 3"),
        ("a,,b", "q,1,two", "'1' in field 2"),
        (",a", "x1,two", "'x1' in field 1"),
        ("a, ", "q,two", "'two' in field 2"),
        ("a,,", "q,,two", "'two' in field 3"),
    ],
)
def test_text_in_a_column_without_a_name_is_refused(refuse: Any, header: str, row: str, cell: str) -> None:
    failure = refuse("a.csv", f"{header}\n{row}\n".encode())
    assert failure.message.startswith(f"a.csv, line 2 has {cell}, a column that has no name")
    assert "in quotes" in failure.remedy


@pytest.mark.parametrize("content", [",a\n7,x\n", ",a\n,x\n", "a,\nx\n", "a,\nx, \n", "a,,\nx,,\n"])
def test_a_column_without_a_name_may_be_empty_or_number_the_rows(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.csv").write_text(content)
    assert read_all(tmp_path / "a.csv") == [("a.csv, line 2", {"a": "x"})]


def test_a_byte_order_mark_is_removed_only_at_the_start_of_a_file(tmp_path: Path) -> None:
    contents = {
        "a.csv": "text\n{0}one\n",
        "a.txt": "zero\n{0}one\n",
        "a.jsonl": '{{"text": "zero"}}\n{0}{{"text": "one"}}\n',
    }
    found = {}
    for name, content in contents.items():
        (tmp_path / name).write_text("\ufeff" + content.format("\ufeff"), encoding="utf-8")
        found[name] = [row["text"] for _, row in read_all(tmp_path / name)]
    assert found == {"a.csv": ["\ufeffone"], "a.txt": ["zero", "\ufeffone"], "a.jsonl": ["zero", "one"]}


cells = st.text(alphabet=st.characters(codec="utf-8"), max_size=8)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(cells, cells), min_size=1, max_size=8), st.sampled_from(["\n", "\r\n"]))
def test_csv_rows_are_those_that_were_written(tmp_path_factory: Any, table: list[tuple[str, str]], end: str) -> None:
    written = io.StringIO(newline="")
    writer = csv.writer(written, lineterminator=end, quoting=csv.QUOTE_ALL)
    writer.writerows([("a", "b"), *table])
    path = tmp_path_factory.getbasetemp() / "property.csv"
    path.write_bytes(written.getvalue().encode())
    assert [tuple(row.values()) for _, row in read_all(path)] == table


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(alphabet=st.characters(codec=None)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.text(min_size=1, max_size=4), json_values, max_size=4), st.booleans())
def test_any_json_is_read_as_python_does_or_refused(tmp_path_factory: Any, row: dict[str, Any], as_list: bool) -> None:
    path = tmp_path_factory.getbasetemp() / ("property.json" if as_list else "property.jsonl")
    text = json.dumps([row] if as_list else row)
    path.write_text(text)
    try:
        json.dumps(json.loads(text), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        with pytest.raises(HoneError, match="cut in two"):
            read_all(path)
    else:
        assert [found for _, found in read_all(path)] == [row]


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60), st.sampled_from([".jsonl", ".json", ".csv", ".txt", ".parquet"]))
def test_any_bytes_are_rows_or_a_failure_with_a_name(tmp_path_factory: Any, content: bytes, ending: str) -> None:
    path = tmp_path_factory.getbasetemp() / f"bytes{ending}"
    path.write_bytes(content)
    with contextlib.suppress(HoneError):
        read_all(path)


@pytest.mark.parametrize(
    ("name", "content", "remedy"),
    [
        ("a.jsonl", b'[\n{"text": "a"}\n]\n', "must end with .json"),
        ("a.jsonl", b'[{"text": "a"}]', "must end with .json"),
        ("a.jsonl", b'{\n"text": "a"\n}\n', "one row a line"),
        ("a.json", b'{"text": "a"}\n{"text": "b"}\n', "must end with .jsonl"),
        ("a.json", b'{"data": []}', "Write [{"),
    ],
)
def test_json_in_the_wrong_form_is_refused_with_the_right_one(
    refuse: Any, name: str, content: bytes, remedy: str
) -> None:
    assert remedy in refuse(name, content).remedy


@pytest.mark.parametrize(
    ("columns", "hint"),
    [
        (["prompt;completion"], "semicolons"),
        (["prompt\tcompletion"], "tabs"),
        (["prompt", " completion"], "' completion': remove the spaces"),
        (["prompt", "completion"], ""),
    ],
)
def test_a_header_for_other_separators_is_recognized(columns: list[str], hint: str) -> None:
    found = suggest_header(columns)
    assert hint in found
    assert bool(found) == bool(hint)


class TestParquet:
    def test_a_file_that_is_not_parquet_is_refused(self, refuse: Any) -> None:
        for content in (b"", b"PAR1", b"PAR1" + b"\0" * 100 + b"PAR1", b"text"):
            assert "a.parquet is not Parquet" in refuse("a.parquet", content).message

    def test_a_file_that_was_cut_is_refused(self, refuse: Any, tmp_path: Path) -> None:
        parquet.write_table(pyarrow.table({"text": ["a" * 1000] * 1000}), tmp_path / "whole.parquet")
        whole = (tmp_path / "whole.parquet").read_bytes()
        broken = bytearray(whole)
        broken[50:90] = random.Random(0).randbytes(40)
        assert "a.parquet is not Parquet" in refuse("a.parquet", whole[:-10]).message
        assert "a.parquet is not Parquet" in refuse("a.parquet", bytes(broken)).message

    def test_a_string_that_is_not_utf8_is_named_by_row_and_column(self, refuse: Any, tmp_path: Path) -> None:
        values = [b"ok"] * 1500 + [b"caf\xe9"]
        broken = pyarrow.Array.from_buffers(pyarrow.string(), 1501, pyarrow.array(values, pyarrow.binary()).buffers())
        parquet.write_table(pyarrow.table({"id": range(1501), "text": broken}), tmp_path / "a.parquet")
        failure = refuse("a.parquet", (tmp_path / "a.parquet").read_bytes())
        assert "a.parquet, row 1501, column text can't be read" in failure.message


RAGGED = [{"a": "x"}, {"a": None, "b": [1]}, {"c": None}, {"a": "y", "b": []}]


class TestSurvey:
    @pytest.mark.parametrize("ending", [".jsonl", ".json"])
    def test_every_row_of_json_counts(self, tmp_path: Path, ending: str) -> None:
        path = tmp_path / f"a{ending}"
        path.write_text("\n".join(map(json.dumps, RAGGED)) if ending == ".jsonl" else json.dumps(RAGGED))
        survey = survey_columns([FileStream([(path, path.name)])])
        assert (survey.rows, survey.found) == (4, {"a": 2, "b": 2, "c": 0})
        assert survey.first_places["b"].split(", ")[1].split()[1] == "2"

    def test_parquet_counts_like_its_rows(self, tmp_path: Path) -> None:
        columns = {"a": ["x", None, "y"] * 4000, "b": [[1], None, []] * 4000, "c": [{"d": None}, None, None] * 4000}
        path = tmp_path / "a.parquet"
        parquet.write_table(pyarrow.table(columns), path, row_group_size=5000)
        for limit in (None, 1, 2, 7001, 12_000):
            survey = survey_columns([FileStream([(path, path.name)] * 2, limit)])
            read = [row for _, row in FileStream([(path, path.name)] * 2, limit)()]
            assert survey.rows == len(read)
            assert survey.found == {name: sum(row[name] is not None for row in read) for name in columns}

    def test_a_file_without_rows_has_columns(self, tmp_path: Path) -> None:
        path = tmp_path / "a.parquet"
        parquet.write_table(pyarrow.table({"text": pyarrow.array([], pyarrow.string())}), path)
        assert survey_columns([FileStream([(path, path.name)])]).found == {"text": 0}
