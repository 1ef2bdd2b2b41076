"""The folder report/: a self-contained page, and its data."""

import errno
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hone_api.artifacts.dataset_report import SplitReport
from hone_api.artifacts.memory_estimate import Estimate
from hone_api.reasons import HoneError
from hone_trainer.reporting import html, report
from hone_trainer.reporting.terms import TERMS
from hone_trainer.training import memory_usage
from pydantic.alias_generators import to_camel

Job = Callable[..., dict[str, Any]]
Train = Callable[..., Any]

ROOT = Path(__file__).parents[3]
HELD_OUT = {"claim": {"name": "claim", "path": "text.jsonl"}, "evalFraction": 0.25}
EVIL = '</script><b onclick=x>say & "something"</b> {{ 7 * 7 }} <img src=http://evil.example/x>'


class Page(HTMLParser):
    """Text, tags and attributes of a page, and whether every tag that was opened was closed."""

    VOID = ("meta", "path")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.open: list[str] = []
        self.data = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.data += data


@pytest.fixture(scope="module")
def reported(job: Job, train: Train) -> Any:
    done = train(job(dataset=HELD_OUT, evaluation={"prompts": [EVIL], "maxNewTokens": 8}, training={"maxSteps": 6}))
    assert done.code == 0, done.log
    return done


@pytest.fixture(scope="module")
def data(reported: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((reported.output / "report/report.json").read_text())
    return found


def test_the_page_is_complete_and_needs_nothing_from_outside(reported: Any) -> None:
    text = (reported.output / "report/report.html").read_text()
    parsed = Page(text)
    assert not {"link", "img", "iframe", "object", "embed", "base", "form", "b onclick"} & set(parsed.tags)
    assert not [found for found in parsed.attributes if found[1] in ("src", "srcset", "action", "onclick")]
    ids = {f"#{value}" for _, name, value in parsed.attributes if name == "id"}
    assert {value for _, name, value in parsed.attributes if name == "href"} <= ids
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest", text)
    policy = next(value for _, name, value in parsed.attributes if name == "content" and "default-src" in value)
    assert policy.startswith("default-src 'none'")


def test_text_from_outside_stays_text(reported: Any) -> None:
    text = (reported.output / "report/report.html").read_text()
    assert text.count("<script>") == text.count("</script>") == 1
    assert EVIL in Page(text).data
    hostile = json.loads((reported.output / "report/report.json").read_text())
    hostile |= {"job": EVIL, "warnings": [EVIL], "versions": {EVIL: EVIL}, "baseModel": {"path": EVIL, EVIL: EVIL}}
    hostile["settings"] = [{"name": EVIL, "value": EVIL, "source": EVIL}]
    hostile["dataset"] = {"format": EVIL, "train": {EVIL: EVIL}}
    hostile["evaluation"]["answers"] = [{"prompt": EVIL, "before": EVIL, "after": EVIL}]
    parsed = Page(html.render_page(hostile))
    assert parsed.tags.count("script") == 1
    assert "img" not in parsed.tags
    assert all(value.startswith("#term-") for _, name, value in parsed.attributes if name == "href")
    assert parsed.data.count(EVIL) >= 12


def test_the_page_holds_the_measurements(reported: Any, data: dict[str, Any]) -> None:
    parsed = Page((reported.output / "report/report.html").read_text())
    metrics = reported.manifest["metrics"]
    for name in ("evalLossBefore", "evalLossAfter", "perplexityBefore", "perplexityAfter"):
        assert html.format_number(metrics[name]) in parsed.data
    assert reported.manifest["digest"] in parsed.data
    labels = [value for tag, name, value in parsed.attributes if (tag, name) == ("svg", "aria-label")]
    titles = ["Loss", "Learning rate", "Gradient norm", "Speed", "Memory of the process (no GPU)"]
    assert [label.partition(" over steps")[0] for label in labels] == titles
    assert "training from " in labels[0]
    assert "evaluation from " in labels[0]
    assert [name for tag, name, _ in parsed.attributes if tag == "html"] == ["lang"]


def test_the_page_shows_each_of_several_datasets(job: Job, train: Train) -> None:
    document = job(training={"maxSteps": 2})
    del document["spec"]["dataset"]
    document["spec"]["datasets"] = [HELD_OUT | {"weight": 3}, {**HELD_OUT, "weight": 1}]
    document["spec"]["datasets"][1]["claim"] = {"name": "claim", "path": "chat.jsonl"}
    done, log = train(document), train(document, command="prepare").log
    assert done.code == 0, done.log
    found = json.loads((done.output / "report/report.json").read_text())["dataset"]["datasets"]
    page = Page((done.output / "report/report.html").read_text())
    for number, (one, name) in enumerate(zip(found, ("claim/text.jsonl", "claim/chat.jsonl"), strict=True), start=1):
        assert f"{number}. {name}{one['format']}" in page.data
        assert f"{100 * one['share']:.1f} %" in page.data
        assert (
            f"\ndataset {number}: {name}, weight {one['weight']:g}, {one['format']} rows: {one['usedRows']} of " in log
        )
    assert [one["weight"] for one in found] == [3, 1]
    assert [one["evaluation"]["rows"] for one in found] == [6, 2]
    linked = {value for tag, name, value in page.attributes if (tag, name) == ("a", "href")}
    names = ("usedRows", "usedTokens", "weight", "share")
    assert {f"#{html.make_anchor(f'mixed {name}')}" for name in names} <= linked
    card = (done.output / "adapter/README.md").read_text()
    assert '"datasets": [' in card
    assert "claim/text.jsonl and claim/chat.jsonl" in card


def test_every_value_of_the_tables_has_a_name_for_people_that_is_explained(reported: Any, data: dict[str, Any]) -> None:
    parsed = Page((reported.output / "report/report.html").read_text())
    linked = {value for tag, name, value in parsed.attributes if (tag, name) == ("a", "href")}
    shown = [
        "evalLoss",
        "perplexity",
        "maxLength",
        "digest",
        "datasetFingerprint",
        *html.flatten_names(data["dataset"]["train"]),
    ]
    shown += [f"measured {name}" for name in data["memory"]["measured"]]
    shown += [f"estimate {name}" for name in data["memory"]["estimate"] or {}]
    assert linked == {f"#{html.make_anchor(name)}" for name in shown}


def test_every_field_of_the_contract_and_every_kind_of_memory_is_a_term() -> None:
    zero = dict.fromkeys(SplitReport.model_fields, 0) | {"lengths": {"p50": 0, "p95": 0, "max": 0}}
    names = set(html.flatten_names(SplitReport.model_validate(zero).to_wire()))
    names |= {f"estimate {to_camel(name)}" for name in Estimate.model_fields}
    names |= {f"measured {to_camel(name)}" for name in memory_usage.MEMORY}
    assert names <= TERMS.keys()
    assert all(term.explanation.endswith(".") and (ROOT / term.page).is_file() for term in TERMS.values())


def test_the_data_is_that_of_the_run(reported: Any, data: dict[str, Any]) -> None:
    manifest = reported.manifest
    for name in ("digest", "metrics", "parameters", "versions", "baseModel", "datasetFingerprint", "spec"):
        assert data[name] == manifest[name]
    lines = [json.loads(line) for line in (reported.output / "logs/metrics.jsonl").read_text().splitlines()]
    assert data["log"] == lines
    assert all(line["tokens_per_second"] > 0 for line in lines[1:])
    assert all(line["process_memory"] > 50_000_000 for line in lines[1:])
    assert data["memory"]["measured"] == {"processMemory": max(line["process_memory"] for line in lines[1:])}
    sources = {setting["name"]: (setting["value"], setting["source"]) for setting in data["settings"]}
    assert sources["learningRate"] == (0.01, report.MANIFEST)
    assert sources["weightDecay"] == (0.0, report.DEFAULT)
    assert sources["lora.r"] == (16, report.DEFAULT)
    assert data["dataset"]["train"]["rows"] == 18
    assert data["dataset"]["evaluation"]["rows"] == 6


def test_the_report_is_not_part_of_the_digest(reported: Any) -> None:
    assert not [path for path in reported.manifest["files"] if path.startswith("report/")]


def test_a_report_that_cannot_be_written_does_not_lose_the_artifact(job: Job, train: Train, tmp_path: Path) -> None:
    (tmp_path / "out/report/report.json/a folder where the file should be").mkdir(parents=True)
    done = train(job(), output=tmp_path / "out")
    assert done.code == 0, done.log
    assert "warning: " in done.log
    assert "/out/report can't be written: " in done.log
    assert done.manifest["digest"]


def test_a_full_disk_is_named(data: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill_up(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(report, "write_atomically", fill_up)
    with pytest.raises(HoneError) as caught:
        report.write_report(tmp_path, data)
    assert caught.value.reason.name == "DiskFull"


def test_a_page_with_little_data_is_still_a_page(data: dict[str, Any]) -> None:
    least = data | {"log": [], "dataset": None, "settings": [], "metrics": {}, "evaluation": {"answers": []}}
    parsed = Page(html.render_page(least | {"memory": {"estimate": None, "measured": {}}}))
    assert "figure" not in parsed.tags
    assert "Before and after" not in parsed.data
    assert data["digest"] in parsed.data
