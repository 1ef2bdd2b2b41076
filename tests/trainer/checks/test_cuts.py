"""The report of cut, dropped and packed rows is what TRL does to them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, disable_progress_bars, enable_progress_bars
from hone_api.reasons import HoneError
from hone_trainer.data import statistics
from hone_trainer.data.statistics import IGNORED, Truncation
from hone_trainer.data.tokenization import DatasetTokenizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trl.trainer.sft_config import SFTConfig

# For each token of each row whether it is learned.
ROWS = st.lists(st.lists(st.booleans(), min_size=1, max_size=12), min_size=1, max_size=8).filter(
    lambda rows: any(map(any, rows))
)
WAYS = [
    {"truncation_mode": "keep_start"},
    {"truncation_mode": "keep_end"},
    *({"packing": True, "packing_strategy": name} for name in ("bfd", "bfd_split", "wrapped")),
    {"packing": True, "truncation_mode": "keep_end"},
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: "-".join(map(str, way.values())))
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(rows=ROWS, max_length=st.integers(2, 10))
def test_the_report_counts_what_trl_keeps(
    tokenizer_of: Callable[..., Any], tmp_path: Path, way: dict[str, Any], rows: list[list[bool]], max_length: int
) -> None:
    ids = [[100 * number + place for place in range(len(row))] for number, row in enumerate(rows)]
    labels = [
        [token if learned else IGNORED for token, learned in zip(tokens, row, strict=True)]
        for tokens, row in zip(ids, rows, strict=True)
    ]
    whole = Dataset.from_dict({"input_ids": ids, "labels": labels})
    args = SFTConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none", max_length=max_length, **way)
    disable_progress_bars()
    kept = DatasetTokenizer(args, tokenizer_of("</s>"), {"text": ""}).truncate(whole, bool(args.packing))
    enable_progress_bars()

    report = statistics.make_split_report(
        statistics.count_tokens(whole), Truncation.from_args(args, bool(args.packing))
    )
    tokens, learned = sum(map(len, kept["input_ids"])), sum(label != IGNORED for row in kept["labels"] for label in row)
    lost = report.dropped_rows + report.empty_rows
    assert report.empty_rows == sum(not any(row) for row in rows)
    if args.packing:
        assert tokens == report.tokens - report.truncated_tokens
        assert (learned == 0) == (lost == report.rows)
    else:
        assert len(kept) == report.rows - lost
        left_out = [row for row in ids if not any(set(row) & set(found) for found in kept["input_ids"])]
        cut_out = sum(min(len(row), max_length) for row in left_out)
        assert tokens == report.tokens - report.truncated_tokens - cut_out


def test_packed_rows_without_a_token_to_learn_are_refused() -> None:
    whole = Dataset.from_dict({"input_ids": [[1, 2, 3]], "labels": [[IGNORED, IGNORED, 3]]})
    report = statistics.make_split_report(statistics.count_tokens(whole), Truncation(2)).model_copy(
        update={"kept_rows": 1}
    )
    with pytest.raises(HoneError, match="leaves no token to learn in any of 1 rows"):
        statistics.find_length_warnings(report, 2, packing=True, purpose="to train on")
