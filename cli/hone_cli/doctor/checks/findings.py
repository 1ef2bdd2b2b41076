"""Findings: each is one line of the report; together they give the exit code for scripts."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Status = Literal["ok", "warning", "failed", "unknown"]
# The version of the JSON. New fields do not raise it; a removed or changed one does.
FORMAT = 1
MOST_NAMES = 3
FAILED, UNUSABLE = 1, 2


@dataclass(frozen=True)
class Finding:
    """The result of one check. `check` is stable, for scripts.

    `is_required`: if it is unknown, the report allows no conclusion.
    """

    check: str
    status: Status
    message: str
    remedy: str = ""
    is_required: bool = True


@dataclass(frozen=True)
class Unread:
    """Facts that could not be read, and why."""

    reason: str


def report_unread(check: str, what: str, unread: Unread, *, is_required: bool = True) -> Finding:
    """Return the finding for facts that could not be read."""
    remedy = "Ask an administrator to run `hone doctor`, or for the right to read them."
    return Finding(check, "unknown", f"{what} could not be read: {unread.reason}", remedy, is_required)


def find_exit_code(findings: Iterable[Finding]) -> int:
    """Return 1 if something failed, 2 if something required is unknown, and otherwise 0."""
    found = list(findings)
    if any(finding.status == "failed" for finding in found):
        return FAILED
    return UNUSABLE if any(finding.status == "unknown" and finding.is_required for finding in found) else 0


def make_document(scope: Literal["cluster", "local"], findings: Sequence[Finding]) -> dict[str, Any]:
    """Return the report as JSON's types."""
    statuses: tuple[Status, ...] = ("ok", "warning", "failed", "unknown")
    return {
        "format": FORMAT,
        "scope": scope,
        "exitCode": find_exit_code(findings),
        "counts": {status: sum(finding.status == status for finding in findings) for status in statuses},
        "checks": [
            {
                "check": finding.check,
                "status": finding.status,
                "required": finding.is_required,
                "message": finding.message,
                "remedy": finding.remedy,
            }
            for finding in findings
        ],
    }


def join_names(names: Iterable[str]) -> str:
    """Return the first names, and the number of the others."""
    found = sorted(names)
    more = f" and {len(found) - MOST_NAMES} more" if len(found) > MOST_NAMES else ""
    return ", ".join(found[:MOST_NAMES]) + more


def count_nodes(count: int) -> str:
    """Return the number with its noun, such as `1 node` and `8 nodes`."""
    return f"{count} node{'' if count == 1 else 's'}"
