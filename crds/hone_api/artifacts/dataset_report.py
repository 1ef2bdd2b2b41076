"""The report about a dataset that preparing makes and prepared.json stores."""

from pydantic import Field

from hone_api.common import ForeignModel


class Lengths(ForeignModel):
    """Tokens per row, at full length."""

    p50: int = Field(description="Half of the rows have at most this many tokens.")
    p95: int = Field(description="95 % of the rows have at most this many tokens.")
    max: int = Field(description="Tokens of the longest row.")


class SplitReport(ForeignModel):
    """Rows to train on, or to evaluate on. Rows are those of the dataset; tokens are counted at full length."""

    rows: int = Field(description="Rows of the dataset.")
    tokens: int = Field(description="Tokens of all rows, before truncation.")
    trained_tokens: int = Field(description="Tokens that the loss is computed on.")
    lengths: Lengths
    truncated_rows: int = Field(description="Rows longer than maxLength.")
    truncated_tokens: int = Field(description="Tokens beyond maxLength.")
    empty_rows: int = Field(description="Rows with no token to learn from, whatever maxLength is.")
    dropped_rows: int = Field(description="Rows whose tokens to learn from are all beyond maxLength.")
    duplicate_rows: int = Field(description="Rows with the same tokens as an earlier row.")
    kept_rows: int = Field(description="Rows after cutting, dropping and packing.")


class DatasetReport(ForeignModel):
    """The report of a dataset: its format, and its rows."""

    format: str
    max_length: int | None
    files: list[str] = Field([], description="The first files that were read, at most 20; none for a hub dataset.")
    file_count: int = Field(0, description="Files that were read.")
    left_out_files: list[str] = Field([], description="The first files next to them that were not read, at most 20.")
    train: SplitReport
    evaluation: SplitReport | None = None

    def summary(self) -> str:
        """Return format and sizes as text."""
        lengths = self.train.lengths
        held_out = f", {self.evaluation.rows} to evaluate on" if self.evaluation else ""
        return (
            f"dataset of {self.format} rows, {self.train.rows} to train on{held_out}; "
            f"tokens a row: {lengths.p50} (median), {lengths.p95} (95 %), {lengths.max} (longest)"
        )
