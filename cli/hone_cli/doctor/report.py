"""Print findings: a table for people, JSON for scripts."""

import json
from collections.abc import Sequence
from typing import Literal

from hone_cli.doctor.checks.findings import Finding, make_document
from hone_cli.ui import output

MARKS = {"ok": "✓", "warning": "!", "failed": "✗", "unknown": "?"}
COLORS: dict[str, Literal["red", "green"]] = {"ok": "green", "failed": "red"}


def print_table(findings: Sequence[Finding], scope: Literal["cluster", "local"]) -> None:
    """Print one line for each finding, its remedy below it, and a summary."""
    width = max((len(finding.check) for finding in findings), default=0)
    for finding in findings:
        head = f"{MARKS[finding.status]} {finding.status:<8}{finding.check:<{width}}  "
        output.print_line(head + finding.message, color=COLORS.get(finding.status))
        if finding.remedy:
            output.print_line(" " * len(head) + finding.remedy, dim=finding.status == "ok")
    counts = make_document(scope, findings)["counts"]
    output.print_line(", ".join(f"{count} {status}" for status, count in counts.items()))


def print_json(findings: Sequence[Finding], scope: Literal["cluster", "local"]) -> None:
    """Print the report as one JSON document."""
    output.print_line(json.dumps(make_document(scope, findings), indent=2))
