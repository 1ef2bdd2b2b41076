"""What a tokenized dataset is like: lengths, what is cut, dropped, repeated, or has nothing to learn from."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset
from hone_api.datareport import Lengths, SplitReport
from hone_api.reasons import ALL_ROWS_TRUNCATED, HoneError

IGNORED = -100
"""The label of a token that is read and not learned (torch's `ignore_index`)."""
BATCH = 1000


@dataclass(frozen=True)
class Counts:
    """For each row: its length, the position of its first learned token, how many there are, and a digest."""

    lengths: np.ndarray
    first_learned: np.ndarray
    learned: np.ndarray
    digests: np.ndarray


def count(whole: Dataset) -> Counts:
    """Count over `input_ids` and `labels`; memory: 32 bytes a row."""
    return Counts(*(np.concatenate(parts) for parts in zip(*map(_count, _batches(whole)), strict=True)))


def examine(counts: Counts, limit: int | None) -> SplitReport:
    """The report, with `keptRows` left at 0. Tokens beyond `limit` are lost; None: no token is."""
    lengths, learned, digests = counts.lengths, counts.learned, counts.digests
    if limit is None:
        limit = int(lengths.max())
    beyond = np.maximum(lengths - limit, 0)
    p50, p95 = np.percentile(lengths, [50, 95], method="higher")
    return SplitReport(
        rows=len(lengths),
        tokens=int(lengths.sum()),
        trained_tokens=int(learned.sum()),
        lengths=Lengths(p50=int(p50), p95=int(p95), max=int(lengths.max())),
        truncated_rows=int((beyond > 0).sum()),
        truncated_tokens=int(beyond.sum()),
        empty_rows=int((learned == 0).sum()),
        dropped_rows=int(((learned > 0) & (counts.first_learned >= limit)).sum()),
        duplicate_rows=len(digests) - len(np.unique(digests)),
        kept_rows=0,
    )


def warnings(report: SplitReport, max_length: int | None, packing: bool, purpose: str) -> list[str]:
    """What the user should know of these rows, each with its number. Raises HoneError AllRowsTruncated."""
    if not report.kept_rows:
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


def segments(row: dict[str, Any], tokenizer: Any) -> list[tuple[str, bool]]:
    """The text of a tokenized row in pieces: each with whether its tokens are learned."""
    found: list[tuple[list[int], bool]] = []
    for token, label in zip(row["input_ids"], row["labels"], strict=True):
        learned = label != IGNORED
        if not found or found[-1][1] != learned:
            found.append(([], learned))
        found[-1][0].append(token)
    return [(tokenizer.decode(tokens), learned) for tokens, learned in found]


def _batches(whole: Dataset) -> Iterator[dict[str, list[list[int]]]]:
    yield from whole.with_format("arrow").iter(BATCH)


def _count(batch: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """For each row: its length, the position of its first learned token, how many there are, and a digest."""
    tokens, labels = (_rows(batch.column(name)) for name in ("input_ids", "labels"))
    learned = [row != IGNORED for row in labels]
    return (
        np.array([len(row) for row in tokens], dtype=np.int64),
        np.array([int(row.argmax()) if row.any() else len(row) for row in learned], dtype=np.int64),
        np.array([int(row.sum()) for row in learned], dtype=np.int64),
        np.array([hash(row.tobytes()) for row in tokens], dtype=np.int64),
    )


def _rows(column: Any) -> list[np.ndarray]:
    array = column.combine_chunks()
    flat, offsets = array.flatten().to_numpy(zero_copy_only=False), array.offsets.to_numpy()
    offsets = offsets - offsets[0]
    return [flat[start:end] for start, end in itertools.pairwise(offsets)]
