"""Rows from Parquet and from the hub hold what was written: no keys of other rows, maps as objects, JSON as values."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from datasets import Dataset, Features, Json, List, Value
from hone_api.reasons import HoneError
from hone_trainer.data.readers import row_files
from hone_trainer.data.readers.row_streams import FileStream, HubStream
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

words = st.text(alphabet="abc ", max_size=5)
keys = st.sampled_from(["city", "zip", "when", "deep"])
leaves = st.fixed_dictionaries({}, optional={"type": words, "description": words})
arguments = st.fixed_dictionaries(
    {}, optional={"city": words, "zip": words, "days": st.lists(st.integers(0, 9), max_size=2), "deep": leaves}
)
calls = arguments.map(lambda given: {"type": "function", "function": {"name": "f", "arguments": given}})
messages = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant"]), "content": words},
    optional={"thinking": words, "tool_calls": st.lists(calls, max_size=2)},
)
tools = st.dictionaries(keys, leaves, max_size=3).map(lambda given: {"function": {"name": "f", "parameters": given}})
conversations = st.fixed_dictionaries(
    {"messages": st.lists(messages, min_size=1, max_size=3), "tools": st.lists(tools, max_size=2)}
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("arrow")


def read_file(path: Path) -> list[dict[str, Any]]:
    return [row for _, row in row_files.read_rows([(path, path.name)])]


def write(path: Path, columns: dict[str, Any]) -> Path:
    parquet.write_table(pyarrow.table(columns), path)
    return path


@settings(max_examples=40, deadline=None)
@given(st.lists(conversations, min_size=1, max_size=4))
def test_rows_of_structs_equal_the_written_rows(folder: Path, written: list[dict[str, Any]]) -> None:
    every_key = {"city": "a", "zip": "a", "days": [1], "deep": {"type": "a", "description": "a"}}
    leaf = {"type": "a", "description": "a"}
    call = {"type": "function", "function": {"name": "f", "arguments": every_key}}
    full = {
        "messages": [{"role": "user", "content": "a", "thinking": "a", "tool_calls": [call]}],
        "tools": [{"function": {"name": "f", "parameters": dict.fromkeys(["city", "zip", "when", "deep"], leaf)}}],
    }
    table = pyarrow.Table.from_pylist([full, *written])
    parquet.write_table(table, folder / "a.parquet")
    assert read_file(folder / "a.parquet") == [full, *written]
    dataset = Dataset(table)
    assert [row for _, row in HubStream("a", dataset)()] == [full, *written]


def test_written_nulls_are_kept_only_in_json(folder: Path) -> None:
    row = {"messages": [{"role": "assistant", "content": None, "tool_calls": [{"arguments": {"a": None, "b": 1}}]}]}
    (folder / "a.jsonl").write_text(json.dumps(row))
    assert read_file(folder / "a.jsonl") == [row]
    without = {"messages": [{"role": "assistant", "content": None, "tool_calls": [{"arguments": {"b": 1}}]}]}
    assert read_file(write(folder / "b.parquet", {"messages": [row["messages"]]})) == [without]
    assert read_file(write(folder / "c.parquet", {"text": ["a", None]})) == [{"text": "a"}, {"text": None}]


def test_the_json_of_datasets_is_read_as_written(folder: Path) -> None:
    row = {"messages": [{"role": "user", "content": None, "n": {"a": None}}], "tools": [{"a": None}], "text": "1"}
    features = Features({"messages": List(Json()), "tools": Json(), "text": Value("string")})
    dataset = Dataset.from_list([row, row], features=features)
    dataset.to_parquet(folder / "json.parquet")
    assert read_file(folder / "json.parquet") == [row, row]
    assert [found for _, found in HubStream("a", dataset)()] == [row, row]
    assert [found for _, found in FileStream([(folder / "json.parquet", "a")], 1)()] == [row]


def test_maps_are_objects(folder: Path) -> None:
    text = pyarrow.map_(pyarrow.string(), pyarrow.string())
    values = pyarrow.struct({"call": text, "other": pyarrow.string()})
    for kind, values_given, expected in (
        (text, [[("role", "user"), ("content", None)]], [{"role": "user", "content": None}]),
        (pyarrow.list_(text), [[[("role", "user")]], []], [[{"role": "user"}], []]),
        (
            pyarrow.map_(pyarrow.string(), values),
            [[("f", {"call": [("city", "Paris"), ("zip", None)]})]],
            [{"f": {"call": {"city": "Paris", "zip": None}}}],
        ),
    ):
        found = read_file(write(folder / "map.parquet", {"a": pyarrow.array(values_given, kind)}))
        assert [row["a"] for row in found] == expected


def refused() -> Iterator[tuple[pyarrow.Array, str]]:
    text = pyarrow.map_(pyarrow.string(), pyarrow.string())
    yield pyarrow.array([[("a", "1")], [("b", "1"), ("b", "2")]], text), "a map has a key twice"
    for value, said in (('{"a": 1', "delimiter"), ('{"a": 1, "a": 2}', 'key "a" twice'), ("[" * 100_000, "recursion")):
        yield pyarrow.array(["1", value], pyarrow.json_()), said


@pytest.mark.parametrize(("column", "said"), list(refused()))
def test_a_value_that_cannot_be_read_is_named(folder: Path, column: pyarrow.Array, said: str) -> None:
    with pytest.raises(HoneError) as failure:
        read_file(write(folder / "bad.parquet", {"a": column}))
    assert failure.value.message.startswith("bad.parquet, row 2, column a can't be read: ")
    assert said in failure.value.message
