"""A stand-in for W&B's server: the GraphQL calls and the file stream that a run of `wandb` makes, on loopback.

It keeps the rows of each run's history by their offsets, as the real server does, so that a row sent twice shows.
"""

import gzip
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HISTORY = "wandb-history.jsonl"
SUMMARY = "wandb-summary.json"


@dataclass
class Run:
    """A run as the server knows it."""

    name: str
    project: str
    display_name: str | None = None
    tags: list[str] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    rows: dict[int, dict[str, Any]] = field(default_factory=dict)
    summary: str = "{}"
    exit_codes: list[int] = field(default_factory=list)

    @property
    def history(self) -> list[dict[str, Any]]:
        """The rows without the fields that W&B adds."""
        return [
            {name: value for name, value in self.rows[line].items() if not name.startswith("_")}
            for line in sorted(self.rows)
        ]

    def to_bucket(self) -> dict[str, Any]:
        """Return the run as GraphQL's bucket."""
        last = self.rows[max(self.rows)] if self.rows else {}
        return {
            "id": f"id-{self.name}",
            "name": self.name,
            "displayName": self.display_name or self.name,
            "description": "",
            "notes": "",
            "sweepName": None,
            "summaryMetrics": self.summary,
            "config": json.dumps(self.config),
            "logLineCount": 0,
            "eventsLineCount": 0,
            "historyLineCount": len(self.rows),
            "historyTail": json.dumps([json.dumps(last)] if last else []),
            "eventsTail": "[]",
            "tags": self.tags,
            "wandbConfig": json.dumps({"t": 1}),
            "project": {"id": "project", "name": self.project, "entity": {"id": "team", "name": "team"}},
        }


class WandbServer:
    """Serves in threads, as a context manager. `keys` are the API keys that clients sent."""

    def __init__(self, port: int = 0) -> None:
        self.runs: dict[str, Run] = {}
        self.keys: set[str] = set()
        self.bodies: list[bytes] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                server.keys.add(self.headers.get("Authorization") or "")
                server.bodies.append(body)
                try:
                    self._answer(server.answer(self.path, json.loads(body)))
                except ValueError:  # an uploaded file
                    self._answer({})

            def do_PUT(self) -> None:
                server.bodies.append(self.rfile.read(int(self.headers.get("Content-Length") or 0)))
                self._answer({})

            def _answer(self, found: dict[str, Any]) -> None:
                content = json.dumps(found).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *arguments: Any) -> None:
                """Print nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> "WandbServer":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to a POST."""
        if path != "/graphql":
            return self._write_files(path, body)
        found = re.search(r"(?:query|mutation)\s*(\w*)", body["query"])
        return {"data": self._answer_query(found[1] if found else "", body.get("variables") or {})}

    def _answer_query(self, name: str, given: dict[str, Any]) -> dict[str, Any]:
        if name == "RunResumeStatus":
            run = self.runs.get(given["name"])
            model = {"id": "project", "name": given["project"], "entity": {"id": "team", "name": "team"}}
            return {"model": model | {"bucket": run.to_bucket() if run else None}}
        if name == "Rows":
            return {"model": {"bucket": self.runs[given["name"]].to_bucket()}}
        if name == "UpsertBucket":
            is_new = given["name"] not in self.runs
            run = self.runs.setdefault(given["name"], Run(given["name"], given["project"]))
            run.display_name = given.get("displayName") or run.display_name
            run.tags = given.get("tags") or run.tags
            run.config |= json.loads(given.get("config") or "{}")
            return {"upsertBucket": {"bucket": run.to_bucket(), "inserted": is_new}}
        if name == "CreateRunFiles":
            files = [{"name": each, "uploadUrl": f"{self.url}/upload/{each}"} for each in given["files"]]
            return {"createRunFiles": {"runID": f"id-{given['run']}", "uploadHeaders": [], "files": files}}
        if name == "ServerFeaturesQuery":
            return {"serverInfo": {"features": []}}
        return {}

    def _write_files(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.get(path.split("/")[-2])
        if run is None:  # W&B's own telemetry
            return {}
        files = body.get("files") or {}
        if HISTORY in files:
            begin = files[HISTORY]["offset"]
            for number, line in enumerate(files[HISTORY]["content"], start=begin):
                run.rows[number] = json.loads(line)
        if SUMMARY in files:
            run.summary = files[SUMMARY]["content"][-1]
        if body.get("complete"):
            run.exit_codes.append(body["exitcode"])
        return {}
