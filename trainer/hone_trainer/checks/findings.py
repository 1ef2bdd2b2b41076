"""A property of some rows that a user should know about, and the warnings that are made of such findings."""

from collections.abc import Sequence
from dataclasses import dataclass

from datasets import Dataset

from hone_trainer.checks.row_places import find_places
from hone_trainer.data.dataset import LoadedDataset


@dataclass(frozen=True)
class Finding:
    """A property that `count` rows have in common, as `text`; `first` is the number of the first of them.

    `looked_at` is the number of rows that were checked, None: all.
    """

    count: int
    first: int
    text: str
    looked_at: int | None = None


def make_findings(rows: Sequence[int], text: str, looked_at: int | None = None) -> list[Finding]:
    """Return a list with the finding about these rows, given by number in ascending order; empty without rows."""
    return [Finding(len(rows), int(rows[0]), text, looked_at)] if len(rows) else []


def write_warnings(findings: list[Finding], data: LoadedDataset, given: Dataset, purpose: str) -> list[str]:
    """Return a sentence for each finding: how many rows of how many, their property, and the place of the first."""
    places = find_places(data, given, [finding.first for finding in findings])
    return [
        f"{finding.count} of {_name_rows(finding, len(given), purpose)} {finding.text} (first: {places[finding.first]})"
        for finding in findings
    ]


def _name_rows(finding: Finding, rows: int, purpose: str) -> str:
    if finding.looked_at is None or finding.looked_at >= rows:
        return f"{rows} rows {purpose}"
    return f"{finding.looked_at} rows {purpose} that were looked at (there are {rows})"
