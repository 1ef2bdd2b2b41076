"""Read files of rows: jsonl, json, csv, parquet, txt. Every row comes with its place, for error messages."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from hone_api.reasons import DATASET_INVALID, HoneError

from hone_trainer.data.readers.csv_rows import read_csv
from hone_trainer.data.readers.json_rows import Row, read_json, read_jsonl
from hone_trainer.data.readers.text_lines import read_lines

__all__ = ["READERS", "Row", "read_rows", "refuse_unknown_endings"]


def read_rows(files: Iterable[tuple[Path, str]]) -> Iterator[Row]:
    """Yield every row of the files, each with the name it has in messages, in their order.

    Raises HoneError DatasetInvalid naming file and line.
    """
    for path, name in files:
        try:
            yield from READERS[path.suffix.lower()](path, name)
        except OSError as error:
            if error.filename is None:
                raise  # not of this file
            raise HoneError(DATASET_INVALID, f"{name} can't be read: {error.strerror}") from None


def _read_txt(path: Path, name: str) -> Iterator[Row]:
    for number, line in read_lines(path, name):
        if line.strip():
            yield f"{name}, line {number}", {"text": line.rstrip("\r\n")}


def _read_parquet(path: Path, name: str) -> Iterator[Row]:
    from hone_trainer.data.readers.parquet_rows import read_parquet

    return read_parquet(path, name)


# Reader by a file's ending.
READERS: dict[str, Callable[[Path, str], Iterator[Row]]] = {
    ".jsonl": read_jsonl,
    ".json": read_json,
    ".csv": read_csv,
    ".parquet": _read_parquet,
    ".txt": _read_txt,
}

_CONVERSIONS = {
    ".ndjson": "Rename it to .jsonl, which is the same format.",
    ".jsonlines": "Rename it to .jsonl, which is the same format.",
    ".tsv": "Convert it to CSV, with commas between the columns, and name it .csv.",
    ".arrow": "Convert it to Parquet.",
    ".xlsx": "Save it as CSV.",
    **dict.fromkeys((".gz", ".zst", ".bz2", ".xz", ".zip"), "Unpack it first."),
}


def refuse_unknown_endings(field: str, paths: list[Path]) -> None:
    """Raise HoneError DatasetInvalid for the first file that none of the readers takes."""
    for path in paths:
        if path.suffix.lower() not in READERS:
            raise HoneError(
                DATASET_INVALID,
                f"{field} names {path.name}, whose ending is none of {', '.join(READERS)}",
                remedy=_CONVERSIONS.get(
                    path.suffix.lower(),
                    "Rename or convert the file, or name the files with a glob such as data/*.jsonl.",
                ),
            )
