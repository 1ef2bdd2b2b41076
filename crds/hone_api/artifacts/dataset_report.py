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


class MixedDataset(ForeignModel):
    """One of several datasets, and its part in the rows to train on."""

    name: str = Field(description="Name on the hub, URI, ConfigMap with its key, or claim with the path on it.")
    format: str = Field(description="Format of its rows.")
    weight: float | None = Field(None, description="Its weight; left out where the datasets follow each other.")
    used_rows: int = Field(description="Rows that are mixed, before truncating and dropping.")
    used_tokens: int = Field(description="Tokens of the mixed rows, without those that are truncated or dropped.")
    share: float = Field(description="Share of its tokens in the tokens of an epoch, from 0 to 1.")
    train: SplitReport
    evaluation: SplitReport | None = None

    def describe(self) -> str:
        """Return name, format and sizes as text."""
        weight = f"weight {self.weight:g}, " if self.weight else ""
        dropped = self.train.dropped_rows + self.train.empty_rows
        held_out = f", {self.evaluation.rows} to evaluate on" if self.evaluation else ""
        return (
            f"{self.name}, {weight}{self.format} rows: {self.used_rows} of {self.train.rows} to train on{held_out}; "
            f"{dropped} dropped; {self.used_tokens} tokens, {100 * self.share:.1f} % of an epoch"
        )


class DatasetReport(ForeignModel):
    """The report of the dataset, or of all datasets together: format, and rows."""

    format: str
    max_length: int | None
    files: list[str] = Field([], description="The first files that were read, at most 20; none for a hub dataset.")
    file_count: int = Field(0, description="Files that were read.")
    left_out_files: list[str] = Field([], description="The first files next to them that were not read, at most 20.")
    train: SplitReport
    evaluation: SplitReport | None = None
    datasets: list[MixedDataset] = Field([], description="Each of several datasets; none for a single one.")

    def summarize(self) -> str:
        """Return format and sizes as text."""
        lengths = self.train.lengths
        held_out = f", {self.evaluation.rows} to evaluate on" if self.evaluation else ""
        what = f"{len(self.datasets)} datasets" if self.datasets else "dataset"
        return (
            f"{what} of {self.format} rows, {self.train.rows} to train on{held_out}; "
            f"tokens a row: {lengths.p50} (median), {lengths.p95} (95 %), {lengths.max} (longest)"
        )
