"""What a notebook shows: one box, valid markup, no scripts, and nothing that others wrote as markup."""

import sys
from html.parser import HTMLParser
from types import SimpleNamespace
from typing import Any

import pytest
from hone.notebook.live import LiveView
from hone.notebook.panel import MOST_POINTS, render_job, render_report, render_transfer
from hypothesis import given
from hypothesis import strategies as st

VOID = {"img", "br"}
POINTS = st.lists(st.tuples(st.integers(0, 10**9), st.floats(-1e9, 1e9)), max_size=50)


class Tags(HTMLParser):
    """Collects the elements, and refuses one that is not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.open.append(tag)
        self.seen.add(tag)
        assert not [name for name, _ in attrs if name.startswith("on")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@given(st.text(), st.text(), st.integers(-10, 200), st.lists(st.text(), max_size=3), POINTS)
def test_text_of_others_is_never_markup(
    title: str, stage: str, percent: int, lines: list[str], points: list[tuple[int, float]]
) -> None:
    found = Tags(render_job(title, stage, percent, lines, {title: sorted(points)}))
    assert found.open == []
    assert found.seen <= {"div", "b", "figure", "figcaption", "svg", "polyline"}


def test_a_curve_is_drawn_and_a_single_point_is_not() -> None:
    assert render_job("j", "Training", 1, [], {"loss": [(1, 2.0)]}).count("<svg") == 0
    html = render_job("j", "Training", 1, [], {"loss": [(step, 1 / step) for step in range(1, 10**5)]})
    assert "loss 1e-05 (from 1), step 99999" in html
    assert html.count(",") < 4 * MOST_POINTS


def test_a_page_is_shown_without_its_scripts() -> None:
    html = render_report('<script>alert("x")</script>')
    assert "<script" not in html
    assert "sandbox style" in html


def test_a_transfer_shows_its_bytes() -> None:
    assert "1.0 MiB of 2.0 MiB" in render_transfer("faq", 2**20, 2**21)
    assert "0.0 MiB of 0.0 MiB" in render_transfer("faq", 0, 0)


class Display:
    """Stands for IPython's module for output."""

    def __init__(self) -> None:
        self.shown: list[Any] = []

    def display(self, data: Any, raw: bool, display_id: bool) -> "Display":
        self.shown.append(data)
        return self

    def update(self, data: Any, raw: bool) -> None:
        self.shown[-1] = data


def test_a_notebook_has_one_output_that_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    display = Display()
    kernel = SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: kernel, display=display))  # type: ignore[arg-type]
    view = LiveView()
    view.show("<b>1</b>", "1")
    view.show("<b>2</b>", "2")
    assert display.shown == [{"text/html": "<b>2</b>", "text/plain": "2"}]


def test_a_terminal_gets_each_line_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "IPython", None)  # type: ignore[arg-type]
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    view = LiveView()
    for text in ("1 %", "1 %", "\x1b[2J"):
        view.show("", text)
    assert capsys.readouterr().err == "1 %\n\\x1b[2J\n"


def test_a_script_gets_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "IPython", None)  # type: ignore[arg-type]
    LiveView().show("<b>1</b>", "1")
    assert capsys.readouterr() == ("", "")
