"""The claims that README and docs call unchecked, and their status by the results of the steps.

A claim is checked when all of its steps passed on a real GPU of the vendor that it is about, failed when one of them
failed, and otherwise not run. With the CPU as a stand-in no claim is checked, and none fails. Pure, except for reading.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

FILE = Path(__file__).with_name("rows.yaml")
STAND_IN = "the CPU stood in for the GPU"
NO_GPU = "torch sees no GPU that works"
VENDORS = {"amd": "an AMD GPU", "nvidia": "an NVIDIA GPU"}


@dataclass(frozen=True)
class Claim:
    """An unchecked claim. Either `steps` check it, or `none` is the reason why no step does."""

    claim: str
    steps: tuple[str, ...] = ()
    none: str = ""
    vendor: str = ""


@dataclass(frozen=True)
class Row:
    """A statement of a page, and the claims that it makes."""

    file: str
    text: str
    claims: tuple[Claim, ...]


def read_rows(text: str | None = None) -> list[Row]:
    """Return the rows of rows.yaml."""
    found = yaml.safe_load(FILE.read_text() if text is None else text)
    return [
        Row(
            row["file"],
            row["text"],
            tuple(Claim(**claim | {"steps": tuple(claim.get("steps", ()))}) for claim in row["claims"]),
        )
        for row in found
    ]


def judge_rows(
    rows: Iterable[Row], results: Mapping[str, Mapping[str, Any]], device: str, vendor: str
) -> list[dict[str, Any]]:
    """Return each row with its status and its claims'. `results`: by the steps' names, with status and reason."""
    judged = []
    for row in rows:
        claims = [judge_claim(claim, results, device, vendor) for claim in row.claims]
        status = join_statuses([claim["status"] for claim in claims])
        judged.append({"file": row.file, "text": row.text, "status": status, "claims": claims})
    return judged


def judge_claim(claim: Claim, results: Mapping[str, Mapping[str, Any]], device: str, vendor: str) -> dict[str, Any]:
    """Return a claim with its status, `checked`, `failed` or `not run`, and the reason."""
    status, reason = _judge(claim, results, device, vendor)
    return {"claim": claim.claim, "steps": list(claim.steps), "status": status, "reason": reason}


def _judge(claim: Claim, results: Mapping[str, Mapping[str, Any]], device: str, vendor: str) -> tuple[str, str]:
    if not claim.steps:
        return "not run", f"no step: {claim.none}"
    if device != "gpu":
        return "not run", STAND_IN
    if vendor == "none":
        return "not run", NO_GPU
    if claim.vendor and claim.vendor != vendor:
        return "not run", f"it is about {VENDORS[claim.vendor]}, and this machine has {VENDORS[vendor]}"
    for status in ("failed", "not run"):
        reasons = [f"{name}: {results[name]['reason']}" for name in claim.steps if results[name]["status"] == status]
        if reasons:
            return status, "; ".join(reasons)
    return "checked", ""


def join_statuses(statuses: Sequence[str]) -> str:
    """Return the status of a row from its claims'."""
    if "failed" in statuses:
        return "failed"
    if set(statuses) == {"checked"}:
        return "checked"
    return "checked in part" if "checked" in statuses else "not run"
