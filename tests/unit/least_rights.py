"""Rights that a role grants, and rights that an audit log shows were used: as (verb, group, resource/subresource)."""

import json
from datetime import datetime
from typing import Any

Object = dict[str, Any]
Right = tuple[str, str, str]


def granted(rules: list[Object]) -> set[Right]:
    return {
        (verb, group, resource)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def collect_requests(audit_log: str, user: str, since: datetime) -> dict[Right, set[int]]:
    """Return what the user asked for since then, and the HTTP statuses of the answers."""
    found: dict[Right, set[int]] = {}
    for line in audit_log.splitlines():
        event = json.loads(line)
        reference = event.get("objectRef")
        if event["user"]["username"] != user or not reference or "resource" not in reference:
            continue
        if datetime.fromisoformat(event["requestReceivedTimestamp"]) < since:
            continue
        parts = (reference["resource"], reference.get("subresource"))
        right = (event["verb"], reference.get("apiGroup", ""), "/".join(part for part in parts if part))
        found.setdefault(right, set()).add((event.get("responseStatus") or {}).get("code", 200))
    return found
