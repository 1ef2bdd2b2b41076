"""Measure a process's use of the machine, and its requests."""

import json
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import yaml

POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived", "ResponseStarted"],
    # The benchmark's own requests are many, and nobody counts them.
    "rules": [{"level": "None", "users": ["admin"]}, {"level": "Metadata"}],
}
WRITES = ("create", "update", "patch", "delete", "deletecollection")


def read_cpu_seconds(pids: Iterable[int]) -> float:
    """Return user and system time of all processes together."""
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def read_resident_mib(pids: Iterable[int]) -> float:
    """Return the resident memory of all processes together, now."""
    pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids)
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


class Audit:
    """The API server's log of requests. Start the server with `flags`."""

    def __init__(self, folder: Path) -> None:
        self._log = folder / "audit.log"
        policy = folder / "audit-policy.yaml"
        policy.write_text(yaml.safe_dump(POLICY))
        self.flags = (
            "--audit-policy-file",
            str(policy),
            "--audit-log-path",
            str(self._log),
            "--audit-log-maxsize=9999",
        )

    def position(self) -> int:
        return self._log.stat().st_size

    def requests(self, user: str, since: int) -> Counter[str]:
        """Return the user's requests since then, except watches: `verb resource` to their number."""
        found: Counter[str] = Counter()
        with self._log.open("rb") as log:
            log.seek(since)
            for line in log:
                event = json.loads(line)
                if event["user"]["username"] == user and event["verb"] != "watch":
                    about = event.get("objectRef") or {"resource": event["requestURI"].partition("?")[0]}
                    resource = "/".join(filter(None, (about.get("resource"), about.get("subresource"))))
                    found[f"{event['verb']} {resource}"] += 1
        return found


def count_writes(requests: Counter[str]) -> int:
    return sum(count for request, count in requests.items() if request.startswith(WRITES))
