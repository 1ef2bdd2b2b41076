"""A small HTTP server that answers as the hub does, and refuses, fails or stops in the middle on request."""

import hashlib
import json
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"

REFUSALS = {
    "me/missing": (404, "RepoNotFound"),
    "me/secret": (401, ""),
    "me/gated": (403, "GatedRepo"),
    "me/down": (503, ""),
    "me/busy": (429, ""),
    "me/broken": (500, ""),
}
SLOW_SECONDS = 3
STUCK_SECONDS = 60


class Hub(ThreadingHTTPServer):
    """Answers as the hub does, for the only model me/tiny; `asked` are the requests, `token` the required one.

    `is_cut`: whether every download of weights ends in the middle, as those of me/cut do.
    """

    def __init__(self, model: Path, token: str | None = None, address: tuple[str, int] = ("127.0.0.1", 0)) -> None:
        self.model = model
        self.token = token
        self.requests: list[str] = []
        self.is_cut = False
        super().__init__(address, Answer)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Answer(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.requests.append(path)
        trouble = next((name for name in ("me/cut", "me/once", "me/slow", "me/stuck") if name in path), "")
        path = path.replace(trouble, "me/tiny") if trouble else path
        if self.server.token and self.headers.get("Authorization") != f"Bearer {self.server.token}":
            return self.send(401, b"{}")
        for name, (status, code) in REFUSALS.items():
            if name in path:
                return self.send(status, b"{}", {"X-Error-Code": code} if code else {})
        if path in (f"/api/models/me/tiny/revision/{revision}" for revision in ("main", COMMIT)):
            return self.send(200, json.dumps({"id": "me/tiny", "sha": COMMIT, "siblings": [], "tags": []}).encode())
        if path == f"/api/models/me/tiny/tree/{COMMIT}":
            files = [
                {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": "0"}
                for file in self.server.model.iterdir()
            ]
            return self.send(200, json.dumps(files).encode())
        if path.startswith("/api/models/me/tiny/revision/"):
            return self.send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        file = self.server.model / path.rpartition("/")[2]
        if path.startswith(f"/me/tiny/resolve/{COMMIT}/") and file.is_file():
            data = file.read_bytes()
            if file.suffix == ".safetensors" and self.command == "GET" and self.spoil(trouble, data):
                return None
            return self.send(200, data, {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": COMMIT})
        return self.send(404, b"{}", {"X-Error-Code": "EntryNotFound"})

    do_HEAD = do_GET

    def spoil(self, trouble: str, data: bytes) -> bool:
        """Cut the connection in the middle of the weights (me/once: only the first time), or let the client wait."""
        if trouble in ("me/slow", "me/stuck"):
            time.sleep(SLOW_SECONDS if trouble == "me/slow" else STUCK_SECONDS)
        first = len([path for path in self.server.requests if path == self.path.partition("?")[0]]) <= 2  # HEAD and GET
        if self.server.is_cut or trouble == "me/cut" or (trouble == "me/once" and first):
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
            return True
        return False

    def send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        """Log nothing."""
