"""The report, as JSON and as one HTML file, written again after every step, so that a crash leaves the last one."""

import html
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# The version of the JSON. New fields do not raise it; a removed or changed one does.
FORMAT = 1
BANNER = "THE CPU STOOD IN FOR THE GPU. NOTHING HERE WAS CHECKED ON A GPU."
COLORS = {"passed": "#176b2c", "checked": "#176b2c", "failed": "#b00020", "checked in part": "#7a5b00"}
STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:70em;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;width:100%}td,th{border-bottom:1px solid #ccc;padding:.3em .6em;text-align:left;
vertical-align:top}pre{background:#f4f4f4;padding:.6em;overflow:auto;white-space:pre-wrap}
.banner{background:#b00020;color:#fff;font-size:2em;font-weight:bold;padding:.6em;text-align:center}"""


def make_document(
    device: str,
    machine: Mapping[str, Any],
    steps: Sequence[Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
    *,
    started: str,
    is_complete: bool,
) -> dict[str, Any]:
    """Return the report as JSON's types."""
    return {
        "format": FORMAT,
        "started": started,
        "complete": is_complete,
        "device": device,
        "note": BANNER if device == "cpu" else "",
        "counts": {name: sum(step["status"] == name for step in steps) for name in ("passed", "failed", "not run")},
        "machine": dict(machine),
        "steps": list(steps),
        "rows": list(rows),
    }


def write_report(folder: Path, document: Mapping[str, Any]) -> None:
    """Write report.json and report.html, each completely or not at all."""
    for name, text in (("report.json", json.dumps(document, indent=2)), ("report.html", render_html(document))):
        new = folder / f".{name}"
        new.write_text(text, encoding="utf-8")
        os.replace(new, folder / name)


def render_html(document: Mapping[str, Any]) -> str:
    """Return the report as one page that loads nothing."""
    banner = f'<div class="banner">{_escape(document["note"])}</div>' if document["note"] else ""
    ended = "" if document["complete"] else "<p><b>This run has not ended, or was interrupted.</b></p>"
    counts = ", ".join(f"{count} {name}" for name, count in document["counts"].items())
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>Hone: acceptance run</title><style>{STYLE}</style>",
        f"{banner}<h1>Hone: acceptance run</h1><p>Started {_escape(document['started'])}. Steps: {counts}.</p>{ended}",
        "<h2>Steps</h2>",
        _render_table(("step", "result", "reason", "s"), [_cells_of_step(step) for step in document["steps"]]),
        "<h2>What README and docs call unchecked</h2>",
        _render_table(("statement", "result", "claims"), [_cells_of_row(row) for row in document["rows"]]),
        f"<h2>Machine</h2><pre>{_escape(json.dumps(document['machine'], indent=2))}</pre>",
        "<h2>Figures and logs</h2>",
        *(_render_details(step) for step in document["steps"] if step["figures"] or step["logTail"]),
    ]
    return "\n".join(parts) + "</html>\n"


def _cells_of_step(step: Mapping[str, Any]) -> list[str]:
    seconds = f"{step['seconds']} of {step['limitSeconds']}"
    return [_escape(step["title"]), _color(step["status"]), _escape(step["reason"]), seconds]


def _cells_of_row(row: Mapping[str, Any]) -> list[str]:
    claims = "<br>".join(
        _color(claim["status"]) + " " + _escape(": ".join(filter(None, (claim["claim"], claim["reason"]))))
        for claim in row["claims"]
    )
    return [f"{_escape(row['file'])}: {_escape(row['text'])}", _color(row["status"]), claims]


def _render_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table. `rows`: cells that are HTML."""
    lines = ["".join(f"<td>{cell}</td>" for cell in row) for row in rows]
    titles = "".join(f"<th>{title}</th>" for title in head)
    return f"<table><tr>{titles}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _render_details(step: Mapping[str, Any]) -> str:
    tail = "\n".join(step["logTail"])
    figures = json.dumps(step["figures"], indent=2) if step["figures"] else ""
    return (
        f"<details><summary>{_escape(step['title'])}</summary><pre>{_escape(figures)}\n{_escape(tail)}</pre></details>"
    )


def _color(status: str) -> str:
    return f'<b style="color:{COLORS.get(status, "#555")}">{_escape(status)}</b>'


def _escape(text: object) -> str:
    return html.escape(str(text))
