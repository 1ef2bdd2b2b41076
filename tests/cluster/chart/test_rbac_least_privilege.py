"""Runs after all other cluster tests: every right of the operator was used, and none was missing."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from kube import COLLECTED, SYSTEM, Cluster
from least_rights import Right, collect_requests, granted

ACCOUNT = f"system:serviceaccount:{SYSTEM}:hone-operator"
# This file is imported before the first test runs.
BEGUN = datetime.now(UTC)
NEVER_ASKED: dict[Right, str] = {
    ("update", "hone.dev", f"{plural}/finalizers"): "judged by admission, when a child names its owner"
    for plural in ("finetunejobs", "inferenceservices")
} | {
    (
        "patch",
        "autoscaling",
        "horizontalpodautoscalers",
    ): "for a change of spec.autoscaling, which test_repairs.py makes with all rights",
    ("delete", "", "configmaps"): "of one that somebody made immutable, and when a service has no adapters any more",
}


def why_not_judged(session: pytest.Session) -> str | None:
    """Return why the rights can't be judged: a part of the tests uses only a part of them. None where they can.

    Tests that start API servers of their own don't use these rights, and run in another process.
    """
    collected = session.stash[COLLECTED]
    folder, files = Path(__file__).parents[1], {item.path for item in collected}
    if missing := sorted(file.name for file in folder.rglob("test_*.py") if file not in files):
        return f"only after all cluster tests; not among those that run: {', '.join(missing)}"
    if any(item.get_closest_marker("needs_cluster") and item not in session.items for item in collected):
        return "only after all cluster tests; some are deselected"
    return None


def test_no_right_is_granted_in_vain_and_none_is_lacking(hone: Cluster, request: pytest.FixtureRequest) -> None:
    if why := why_not_judged(request.session):
        pytest.skip(f"NOT RUN: {why}")
    log = Path(hone.env["KUBECONFIG"]).parents[1] / "log/audit.log"
    if not log.exists():
        pytest.skip(f"NOT RUN: this cluster's API server keeps no audit log in {log}; a local one does after a restart")
    roles = [hone.get("clusterrole", f"{SYSTEM}-hone-operator"), hone.get("role", "hone-operator-lease", SYSTEM)]
    rights = granted([rule for role in roles if role for rule in role["rules"]])
    complete, _, _ = log.read_text().rpartition("\n")  # the API server writes meanwhile
    used = collect_requests(complete, ACCOUNT, BEGUN)
    assert rights - used.keys() == NEVER_ASKED.keys(), "granted and never used, or no longer granted"
    lacking = {right for right, codes in used.items() if 403 in codes and right not in rights}
    assert not lacking
