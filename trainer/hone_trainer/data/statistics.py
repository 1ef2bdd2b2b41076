"""Statistics of a tokenized dataset: lengths, and rows that are cut, dropped, repeated, or have nothing to learn.

Input is rows of tokens and labels at full length; output is the SplitReport of prepared.json, and warnings. The rows
are
counted once, in arrays of a few bytes per row, from which the effect of any cut follows without tokenizing again.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset
from hone_api.artifacts.dataset_report import Lengths, SplitReport
from hone_api.reasons import ALL_ROWS_TRUNCATED, DATASET_INVALID, HoneError
from trl.trainer.sft_config import SFTConfig

# The label of a token that is read and not learned (torch's `ignore_index`).
IGNORED = -100
BATCH = 1000


@dataclass(frozen=True)
class TokenCounts:
    """For each row: its length, the positions of its first and last learned token, their number, and a digest.

    Without a learned token the first one's position is the length, and the last one's -1.
    """

    lengths: np.ndarray
    first_learned: np.ndarray
    last_learned: np.ndarray
    learned: np.ndarray
    digests: np.ndarray

    @staticmethod
    def join(parts: "Sequence[TokenCounts]", order: np.ndarray) -> "TokenCounts":
        """Return the counts of several datasets' rows, one after the other, in an order."""
        columns = zip(*(vars(part).values() for part in parts), strict=True)
        return TokenCounts(*(np.concatenate(column)[order] for column in columns))


@dataclass(frozen=True)
class Truncation:
    """The tokens that a row keeps: at most `limit`, None: all; the first ones, or with `keep_end` the last ones."""

    limit: int | None
    keep_end: bool = False

    @staticmethod
    def from_args(args: SFTConfig, packing: bool) -> "Truncation":
        """Return what TRL cuts: a packed row loses its end with bfd, and nothing with the other strategies."""
        if packing:
            return Truncation(args.max_length if args.packing_strategy == "bfd" else None)
        return Truncation(args.max_length, args.truncation_mode == "keep_end")

    def count_cut_tokens(self, lengths: np.ndarray) -> np.ndarray:
        """Return how many tokens each row loses."""
        return np.zeros_like(lengths) if self.limit is None else np.maximum(lengths - self.limit, 0)

    def find_lost_rows(self, counts: TokenCounts) -> np.ndarray:
        """Return for each row whether it keeps no learned token."""
        beyond = self.count_cut_tokens(counts.lengths)
        return counts.last_learned < beyond if self.keep_end else counts.first_learned >= counts.lengths - beyond

    def count_kept_tokens(self, counts: TokenCounts, *, drops_rows: bool) -> np.ndarray:
        """Return how many tokens each row keeps. `drops_rows`: rows without a learned token are left out."""
        cut_lengths = counts.lengths - self.count_cut_tokens(counts.lengths)
        return (
            np.where((counts.learned == 0) | self.find_lost_rows(counts), 0, cut_lengths) if drops_rows else cut_lengths
        )


def count_tokens(whole: Dataset) -> TokenCounts:
    """Count over `input_ids` and `labels`; memory: 40 bytes a row."""
    return TokenCounts(
        *(np.concatenate(parts) for parts in zip(*map(_count_batch, iterate_tokens(whole)), strict=True))
    )


def make_split_report(counts: TokenCounts, cut: Truncation) -> SplitReport:
    """Return the report, with `keptRows` left at 0."""
    lengths, learned, digests = counts.lengths, counts.learned, counts.digests
    beyond = cut.count_cut_tokens(lengths)
    is_lost = cut.find_lost_rows(counts)
    p50, p95 = np.percentile(lengths, [50, 95], method="higher")
    return SplitReport(
        rows=len(lengths),
        tokens=int(lengths.sum()),
        trained_tokens=int(learned.sum()),
        lengths=Lengths(p50=int(p50), p95=int(p95), max=int(lengths.max())),
        truncated_rows=int((beyond > 0).sum()),
        truncated_tokens=int(beyond.sum()),
        empty_rows=int((learned == 0).sum()),
        dropped_rows=int(((learned > 0) & is_lost).sum()),
        duplicate_rows=len(digests) - len(np.unique(digests)),
        kept_rows=0,
    )


def find_shared_rows(counts: TokenCounts, other: TokenCounts) -> list[int]:
    """Return the numbers of the rows that are, token by token, among the rows of `other`."""
    return np.flatnonzero(np.isin(counts.digests, other.digests)).tolist()


def find_length_warnings(report: SplitReport, max_length: int | None, packing: bool, purpose: str) -> list[str]:
    """Return warnings about these rows, each with its number. Raises HoneError AllRowsTruncated."""
    if report.empty_rows == report.rows:
        raise HoneError(
            DATASET_INVALID,
            f"None of {report.rows} rows {purpose} has a token to learn from",
            remedy="Check the rows' completions, what the chat template makes of the assistant's turns, and which "
            "messages have weight: 0 or train: false.",
        )
    if not report.kept_rows or report.empty_rows + report.dropped_rows == report.rows:
        raise HoneError(
            ALL_ROWS_TRUNCATED,
            f"spec.training.maxLength is {max_length}, which leaves no token to learn in any of {report.rows} rows "
            f"{purpose}",
        )
    of, left_out = f"of {report.rows} rows {purpose}", "" if packing else " and are left out"
    found = [
        (report.dropped_rows, f"{of} have no token to learn from within maxLength {max_length}{left_out}"),
        (report.empty_rows, f"{of} have no token to learn from{left_out}"),
        (
            report.truncated_rows,
            f"{of} are longer than maxLength {max_length}: {report.truncated_tokens:,} of {report.tokens:,} tokens "
            "are cut off",
        ),
        (report.duplicate_rows, f"{of} repeat an earlier one"),
    ]
    return [f"{count} {text}" for count, text in found if count]


def split_segments(row: dict[str, Any], tokenizer: Any) -> list[tuple[str, bool]]:
    """Return the text of a tokenized row in pieces, each with whether its tokens are learned."""
    found: list[tuple[list[int], bool]] = []
    for token, label in zip(row["input_ids"], row["labels"], strict=True):
        learned = label != IGNORED
        if not found or found[-1][1] != learned:
            found.append(([], learned))
        found[-1][0].append(token)
    return [(tokenizer.decode(tokens), learned) for tokens, learned in found]


@dataclass(frozen=True)
class RowTokens:
    """Some rows' tokens and labels, one row after another; row i is at `offsets[i]` to `offsets[i + 1]`."""

    ids: np.ndarray
    labels: np.ndarray
    offsets: np.ndarray


def iterate_tokens(whole: Dataset) -> Iterator[RowTokens]:
    """Yield the rows in batches, without a Python object for each token."""
    for batch in whole.with_format("arrow").iter(BATCH):
        found: Any = batch
        ids, labels = (found.column(name).combine_chunks() for name in ("input_ids", "labels"))
        offsets = ids.offsets.to_numpy()
        yield RowTokens(
            ids.flatten().to_numpy(zero_copy_only=False),
            labels.flatten().to_numpy(zero_copy_only=False),
            offsets - offsets[0],
        )


def _count_batch(batch: RowTokens) -> tuple[np.ndarray, ...]:
    """Return the fields of Counts for each row."""
    starts, ends = batch.offsets[:-1].astype(np.int64), batch.offsets[1:].astype(np.int64)
    positions = np.append(np.flatnonzero(batch.labels != IGNORED), -1)
    before, after = np.searchsorted(positions[:-1], starts), np.searchsorted(positions[:-1], ends)
    learned = after - before
    lengths = ends - starts
    return (
        lengths,
        np.where(learned > 0, positions[before] - starts, lengths),
        np.where(learned > 0, positions[after - 1] - starts, -1),
        learned,
        np.array([hash(batch.ids[start:end].tobytes()) for start, end in zip(starts, ends, strict=True)], np.int64),
    )
