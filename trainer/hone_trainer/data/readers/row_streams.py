"""Streams of rows, which can be read more than once, and a survey of the columns that they have.

`dataset` opens a stream for each split, `survey_columns` counts which columns hold values in any row, and `formats`
judges the format by that. Files of JSON are parsed for the survey and again for the rows; Parquet files and hub
datasets are counted in Arrow, where a row never becomes a Python object.
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from datasets import Dataset

from hone_trainer.data.readers import row_files
from hone_trainer.data.readers.arrow_values import make_readers


@dataclass
class ColumnSurvey:
    """The columns of the rows. A column that is null in every row is in `found` with 0."""

    rows: int = 0
    # For each column, how many rows have it with a value other than null.
    found: dict[str, int] = field(default_factory=dict)
    # For each column, where a row (or, in Parquet, a file) first has it.
    first_places: dict[str, str] = field(default_factory=dict)

    def add_row(self, where: str, row: dict[str, Any]) -> None:
        """Count one row."""
        self.rows += 1
        for column, value in row.items():
            if column not in self.found:
                self.found[column] = 0
                self.first_places[column] = where
            if value is not None:
                self.found[column] += 1

    def add_column(self, where: str, column: str, filled_rows: int) -> None:
        """Count one column of several rows, which the caller adds to `rows`."""
        self.first_places.setdefault(column, where)
        self.found[column] = self.found.get(column, 0) + filled_rows


class Stream(Protocol):
    """Rows that can be read any number of times."""

    def __call__(self) -> Iterable[row_files.Row]:
        """Return the rows from the first one."""

    def survey(self, survey: ColumnSurvey) -> None:
        """Count the columns of all rows."""


@dataclass(frozen=True)
class FileStream:
    """The first `limit` rows of files, or all of them."""

    files: list[tuple[Path, str]]
    limit: int | None = None

    def __call__(self) -> Iterator[row_files.Row]:
        return itertools.islice(row_files.read_rows(self.files), self.limit)

    def survey(self, survey: ColumnSurvey) -> None:
        left = self.limit
        for path, name in self.files:
            if left == 0:
                return
            before = survey.rows
            if path.suffix.lower() == ".parquet":
                from hone_trainer.data.readers.parquet_rows import count_parquet

                for count, filled in count_parquet(path, name, left):
                    survey.rows += count
                    for column, filled_rows in filled.items():
                        survey.add_column(name, column, filled_rows)
            else:
                for where, row in itertools.islice(row_files.read_rows([(path, name)]), left):
                    survey.add_row(where, row)
            left = None if left is None else left - (survey.rows - before)


@dataclass(frozen=True)
class HubStream:
    """The first `limit` rows of a split of a hub dataset, or all of them."""

    name: str
    dataset: Dataset
    limit: int | None = None

    def __call__(self) -> Iterator[row_files.Row]:
        readers = make_readers(self.dataset.data.schema, is_json_parsed=True)
        for number, row in enumerate(itertools.islice(self.dataset, self.limit), start=1):
            read = {column: readers[column](value) if column in readers else value for column, value in row.items()}
            yield f"{self.name}, row {number}", read

    def survey(self, survey: ColumnSurvey) -> None:
        table = self.dataset.data.slice(0, self.limit)
        survey.rows += table.num_rows
        for column in table.column_names:
            survey.add_column(self.name, column, table.num_rows - table.column(column).null_count)


def survey_columns(streams: Iterable[Stream]) -> ColumnSurvey:
    """Count the columns over all rows of the streams. Raises HoneError DatasetInvalid for a row that can't be read."""
    survey = ColumnSurvey()
    for stream in streams:
        stream.survey(survey)
    return survey
