"""What README and docs call unchecked has steps of the acceptance run, or a reason why not."""

import importlib
import re
from pathlib import Path
from typing import Any

import pytest
from acceptance.catalogue import STEPS
from acceptance.context import ROOT
from acceptance.rows import STAND_IN, Claim, Row, join_statuses, judge_claim, judge_rows, read_rows

ROWS = read_rows()
NAMES = [step.name for step in STEPS]
EXPLAINS = "acceptance.md"
"""The page that explains the word."""
PASSED = {name: {"status": "passed", "reason": ""} for name in NAMES}


def read_page(name: str) -> str:
    """Return a page on one line."""
    return " ".join((ROOT / name).read_text().split())


def find_uncovered(page: str, texts: list[str]) -> list[str]:
    """Where a page says unchecked outside of these texts."""
    spans = [(found.start(), found.end()) for text in texts for found in re.finditer(re.escape(text), page)]
    places = [found.start() for found in re.finditer("unchecked", page, re.IGNORECASE)]
    return [page[max(0, at - 60) : at + 60] for at in places if not any(start <= at < end for start, end in spans)]


def pages() -> list[str]:
    found = [path for path in (ROOT / "docs").rglob("*.md") if path.name != EXPLAINS]
    return ["README.md", *(str(path.relative_to(ROOT)) for path in found)]


@pytest.mark.parametrize("page", pages())
def test_all_that_a_page_calls_unchecked_is_in_a_row(page: str) -> None:
    assert not find_uncovered(read_page(page), [row.text for row in ROWS if row.file == page])


def test_a_statement_that_no_row_has_is_found() -> None:
    page = "a | **unchecked** on b | and Unchecked with c"
    assert find_uncovered(page, ["**unchecked** on b"]) == [page]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.text)
def test_the_text_of_a_row_is_on_its_page_once(row: Row) -> None:
    assert "unchecked" in row.text
    assert read_page(row.file).count(row.text) == 1


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.text)
def test_each_claim_of_a_row_has_steps_or_a_reason(row: Row) -> None:
    assert row.claims
    for claim in row.claims:
        assert bool(claim.steps) != bool(claim.none)
        assert set(claim.steps) <= set(NAMES)
        assert claim.vendor in ("", "amd", "nvidia")


def test_all_steps_are_functions_with_a_limit() -> None:
    assert len(set(NAMES)) == len(NAMES)
    for step in STEPS:
        module, _, name = step.function.partition(":")
        assert callable(getattr(importlib.import_module(module), name))
        assert 60 <= step.seconds <= 3600


def test_a_page_that_says_how_to_run_it_names_each_step() -> None:
    page = read_page(f"docs/{EXPLAINS}")
    assert not [name for name in NAMES if f"`{name}`" not in page]


def test_all_rows_with_steps_are_checked_when_all_steps_pass_on_an_amd_gpu() -> None:
    for row in judge_rows(ROWS, PASSED, "gpu", "amd"):
        has_none = [bool(claim.none) for claim in next(each for each in ROWS if each.text == row["text"]).claims]
        expected = "not run" if all(has_none) else "checked in part" if any(has_none) else "checked"
        assert row["status"] == expected, row


@pytest.mark.parametrize("status", ["passed", "failed", "not run"])
def test_the_cpu_as_a_stand_in_checks_no_row_and_fails_none(status: str) -> None:
    results = {name: {"status": status, "reason": "why"} for name in NAMES}
    judged = judge_rows(ROWS, results, "cpu", "none")
    assert {row["status"] for row in judged} == {"not run"}
    reasons = {claim["reason"] for row in judged for claim in row["claims"] if claim["steps"]}
    assert reasons == {STAND_IN}


@pytest.mark.parametrize(
    ("claim", "vendor", "changed", "expected"),
    [
        (Claim("a", ("lora", "full")), "nvidia", {}, ("checked", "")),
        (Claim("a", ("lora",), vendor="amd"), "amd", {}, ("checked", "")),
        (Claim("a", ("lora",), vendor="amd"), "nvidia", {}, ("not run", "it is about an AMD GPU")),
        (Claim("a", ("lora", "full")), "amd", {"full": "failed"}, ("failed", "full: why")),
        (Claim("a", ("lora", "full")), "amd", {"lora": "not run"}, ("not run", "lora: why")),
        (Claim("a", ("lora", "full")), "amd", {"lora": "not run", "full": "failed"}, ("failed", "full: why")),
        (Claim("a", none="no cluster"), "amd", {}, ("not run", "no step: no cluster")),
    ],
)
def test_a_claim_follows_from_its_steps(
    claim: Claim, vendor: str, changed: dict[str, str], expected: tuple[str, str]
) -> None:
    results: dict[str, Any] = PASSED | {name: {"status": status, "reason": "why"} for name, status in changed.items()}
    found = judge_claim(claim, results, "gpu", vendor)
    assert found["status"] == expected[0]
    assert found["reason"].startswith(expected[1])


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        (["checked", "checked"], "checked"),
        (["checked", "not run"], "checked in part"),
        (["checked", "failed", "not run"], "failed"),
        (["not run"], "not run"),
    ],
)
def test_a_row_is_checked_only_when_all_of_its_claims_are(statuses: list[str], expected: str) -> None:
    assert join_statuses(statuses) == expected


def test_the_steps_models_and_data_need_no_hub() -> None:
    sources = [file.read_text() for file in (ROOT / "tests/acceptance").glob("*.py")]
    assert sources
    assert not [source for source in sources if "huggingface.co" in source]
    assert Path(ROOT / "examples/llama2-guanaco/full.yaml").is_file()
