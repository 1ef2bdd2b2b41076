"""Files whose content differs from their name are refused by their content."""

import bz2
import gzip
import io
import lzma
import sqlite3
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hone_api.reasons import HoneError
from hone_trainer.data.readers import row_files
from hone_trainer.inputs.disguised_files import refuse_disguised
from pyarrow import feather, parquet

ROWS = b'{"text": "one"}\n'
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 12345\n".encode()


def zip_rows() -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("train.jsonl", ROWS)
    return data.getvalue()


def write_arrow(writer: Callable[[Any, Any], Any]) -> bytes:
    data = io.BytesIO()
    writer(pyarrow.table({"text": ["one"]}), data)
    return data.getvalue()


def dump_database() -> bytes:
    with sqlite3.connect(":memory:") as database:
        database.execute("create table rows (text)")
        return database.serialize()


DISGUISES = {
    "a pointer of Git LFS": POINTER,
    "compressed by gzip": gzip.compress(ROWS),
    "compressed by bzip2": bz2.compress(ROWS),
    "compressed by xz": lzma.compress(ROWS),
    "compressed by zstd": pyarrow.compress(ROWS, "zstd", asbytes=True),
    "a zip archive": zip_rows(),
    "an Arrow file": write_arrow(feather.write_feather),
    "a database of SQLite": dump_database(),
    "Parquet": write_arrow(parquet.write_table),
    "a page in HTML": b"\n<!DOCTYPE HTML>\n<html><body>Log in</body></html>\n",
}


@pytest.mark.parametrize("ending", row_files.READERS)
@pytest.mark.parametrize("what", DISGUISES)
def test_a_file_with_other_content_is_refused_by_its_content(tmp_path: Path, what: str, ending: str) -> None:
    path = tmp_path / f"train{ending}"
    path.write_bytes(DISGUISES[what])
    if (what, ending) in (("Parquet", ".parquet"), ("a page in HTML", ".txt")):
        refuse_disguised(path, path.name)
        return
    with pytest.raises(HoneError) as failure:
        refuse_disguised(path, path.name)
    assert failure.value.message.startswith(f"train{ending} is {what}")


@pytest.mark.parametrize(
    "text",
    ["", "PAR1,PAR2\n", "BZh is bold\n", "PK\n", "%PDF-files\n",
     "version https://git-lfs.github.com/spec/v1 is a line\n",
     "<p>text</p>\n", '{"text": "<html>"}\n', POINTER.decode() + "x" * 1024],
)  # fmt: skip
@pytest.mark.parametrize("ending", [".txt", ".csv", ".jsonl"])
def test_text_that_looks_similar_is_accepted(tmp_path: Path, text: str, ending: str) -> None:
    path = tmp_path / f"train{ending}"
    path.write_text(text)
    refuse_disguised(path, path.name)


@pytest.mark.parametrize("first", ["sep=,", "sep=;", "SEP=\t", '"sep=,"'])
def test_the_line_that_excel_begins_a_csv_with_is_named(tmp_path: Path, first: str) -> None:
    path = tmp_path / "train.csv"
    path.write_text(f"{first}\ntext\none\n")
    with pytest.raises(HoneError, match=r"(?i)train\.csv, line 1 is sep=.?, by which Excel knows the separator"):
        list(row_files.read_rows([(path, path.name)]))
    path.write_text("sep=,text\n1,one\n")
    assert list(row_files.read_rows([(path, path.name)])) == [("train.csv, line 2", {"sep=": "1", "text": "one"})]


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json", "train.jsonl"])
def test_a_pointer_in_place_of_a_file_that_is_read_is_named(
    claim: Path, worker: Any, job: Any, tmp_path: Path, name: str
) -> None:
    for path in (claim / "tiny").iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "train.jsonl").write_bytes(ROWS)
    (tmp_path / name).unlink()
    (tmp_path / name).write_bytes(POINTER)
    places = {"model": ".", "dataset": "train.jsonl"}
    spec = {field: {"claim": {"name": "claim", "path": path}} for field, path in places.items()}
    result = worker.run(job(**spec), claims={"claim": tmp_path}, command="prepare")
    assert result.code in (65, 66)
    assert f"{name} there is a pointer" in result.log or f"{name} is a pointer of Git LFS" in result.log
    assert "git lfs pull" in result.log
