"""Rights from rules and from an audit log."""

import json
from datetime import UTC, datetime

from least_rights import collect_requests, granted

SINCE = datetime(2026, 1, 1, tzinfo=UTC)


def event(verb: str, resource: str, *, user: str = "hone", code: int = 200, year: int = 2026, **more: str) -> str:
    reference = {"resource": resource, **more}
    return json.dumps(
        {
            "user": {"username": user},
            "verb": verb,
            "objectRef": reference,
            "responseStatus": {"code": code},
            "requestReceivedTimestamp": f"{year}-03-01T00:00:00.000000Z",
        }
    )


def test_what_a_role_grants() -> None:
    rules = [{"apiGroups": ["batch"], "resources": ["jobs", "jobs/status"], "verbs": ["get", "patch"]}]
    assert granted(rules) == {(v, "batch", r) for v in ("get", "patch") for r in ("jobs", "jobs/status")}


def test_rights_from_an_audit_log() -> None:
    log = "\n".join(
        [
            event("patch", "finetunejobs", apiGroup="hone.dev", subresource="status"),
            event("list", "nodes", code=403),
            event("get", "secrets", user="another"),
            event("get", "secrets", year=2025),
            json.dumps({"user": {"username": "hone"}, "verb": "get", "requestURI": "/version"}),
        ]
    )
    found = collect_requests(log, "hone", SINCE)
    assert found == {("patch", "hone.dev", "finetunejobs/status"): {200}, ("list", "", "nodes"): {403}}
