"""A small HTTP server that takes uploads as the hub does: repositories, LFS objects by digest, and commits.

It refuses, limits and cuts on request. The endpoints and their answers are those that huggingface_hub uses for uploads
without Xet.
"""

import base64
import hashlib
import json
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

# Files from this size on, and weights, are LFS objects.
LARGE = 10 * 1024**2
TOKEN = "hf_writer"
ATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
Files = dict[str, bytes]


@dataclass
class Repository:
    """A repository's commits, the oldest first: id and files."""

    is_private: bool
    commits: list[tuple[str, Files]] = field(default_factory=list)

    @property
    def files(self) -> Files:
        """The files of the newest commit, without what the hub itself adds."""
        return {name: data for name, data in self.commits[-1][1].items() if name != ".gitattributes"}

    def commit(self, files: Files) -> str:
        oid = secrets.token_hex(20)  # that of no other repository: a commit of a killed client may arrive late
        self.commits.append((oid, files))
        return oid


class WritableHub(ThreadingHTTPServer):
    """A hub with one user, `me`, whose token is TOKEN.

    `spoil` is called with method and path of each request, and may return a fault: a status, or one with a sentence;
    "cut", which ends the connection in the middle of what the client sends; "lost", which does what is asked and sends
    no answer; or "page", which is a page of something else. `retry_after` is sent with status 429.
    """

    daemon_threads = True

    def __init__(self, address: tuple[str, int] = ("127.0.0.1", 0), url: str = "") -> None:
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.asked: list[tuple[str, str]] = []
        self.received_bytes = 0
        self.part_bytes = 0
        self.retry_after = "0"
        self.spoil: Callable[[str, str], int | str | tuple[int, str] | None] = lambda method, path: None
        self.lock = threading.RLock()
        super().__init__(address, Answer)
        self.url = url or f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def count(self, method: str, part: str) -> int:
        """Return how many requests there were with this method and a path that contains `part`."""
        return sum(one == method and part in path for one, path in self.asked)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing: clients are killed in the middle of their requests."""


class Answer(BaseHTTPRequestHandler):
    server: WritableHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        with self.server.lock:
            self.server.asked.append((self.command, path))
        fault = self.server.spoil(self.command, path)
        if fault == "cut":
            self.rfile.read(int(self.headers.get("Content-Length", 0)) // 2)
            self.close_connection = True
            return None
        size = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(size)
        if len(body) < size:  # the client was killed: lines of a commit may be complete
            self.close_connection = True
            return None
        if fault == "page":
            return self.send(200, b"<html>Welcome</html>", {"Content-Type": "text/html"})
        if isinstance(fault, int):
            fault = fault, "refused by the test"
        if isinstance(fault, tuple):
            wait = {"Retry-After": self.server.retry_after} if fault[0] == 429 else {}
            return self.send(fault[0], {"error": fault[1]}, wait)
        is_object = path.startswith("/lfs/")
        if not is_object and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.send(401, {"error": "Invalid username or password."})
        with self.server.lock:
            status, answer, headers = self.answer(path, body)
        if fault == "lost":
            self.close_connection = True
            return None
        return self.send(status, answer, headers)

    do_HEAD = do_POST = do_PUT = do_GET

    def answer(self, path: str, body: bytes) -> tuple[int, Any, dict[str, str]]:
        """Return status, body and headers."""
        if path.startswith("/lfs/"):
            return self.take_object(path, body)
        given = json.loads(body) if body and "/commit/" not in path else {}
        if path == "/api/repos/create":
            name = f"{given['organization']}/{given['name']}"
            if given["organization"] != "me":
                return 403, {"error": "You don't have the rights to create a model under this namespace"}, {}
            if name in self.server.repositories:
                return 409, {"error": "You already created this model repo"}, {}
            found = self.server.repositories[name] = Repository(given.get("visibility") == "private")
            found.commit({".gitattributes": ATTRIBUTES})
            return 200, {"url": f"{self.server.url}/{name}"}, {}
        if path == "/api/validate-yaml":
            if "broken" in given["content"]:
                return 400, {"errors": [{"message": '"license" must be one of a list'}], "warnings": []}, {}
            return 200, {"errors": [], "warnings": []}, {}
        parts = path.removeprefix("/api/models").strip("/").split("/")
        name = "/".join(parts[:2]).removesuffix(".git")
        repository = self.server.repositories.get(name)
        if repository is None:
            return 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}
        return self.answer_of(repository, name, parts[2:], given, body)

    def answer_of(
        self, repository: Repository, name: str, rest: list[str], given: Any, body: bytes
    ) -> tuple[int, Any, dict[str, str]]:
        """Return the answer to a request about a repository."""
        head, files = repository.commits[-1]
        match rest:
            case [] | ["revision", _]:
                return 200, {"id": name, "sha": head, "siblings": [], "tags": [], "private": repository.is_private}, {}
            case ["tree", revision]:
                return 200, [describe(path, data) for path, data in self.at(repository, revision).items()], {}
            case ["resolve", revision, file]:
                data = self.at(repository, revision)[file]
                etag = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": revision}
                return 200, data, etag
            case ["preupload", _]:
                answers = [
                    {"path": each["path"], "uploadMode": mode(each["path"], each["size"]), "shouldIgnore": False}
                    | ({"oid": describe(each["path"], files[each["path"]])["oid"]} if each["path"] in files else {})
                    for each in given["files"]
                ]
                return 200, {"files": answers}, {}
            case ["info", "lfs", "objects", "batch"]:
                return 200, {"transfer": "basic", "objects": [self.offer(each) for each in given["objects"]]}, {}
            case ["commit", _]:
                return self.commit(repository, name, [json.loads(line) for line in body.splitlines()])
        return 404, {"error": "no such endpoint"}, {}

    def at(self, repository: Repository, revision: str) -> Files:
        return next(files for oid, files in repository.commits if oid == revision)

    def offer(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Return where to upload an object to, in parts where `part_bytes` is set; nothing for one that is here."""
        oid, size, step = wanted["oid"], wanted["size"], self.server.part_bytes
        if oid in self.server.objects:
            return wanted
        href = f"{self.server.url}/lfs/{oid}"
        header = {}
        if step and size > step:
            header = {str(n + 1): f"{href}/{n + 1}?signature=secret" for n in range(-(-size // step))}
            header["chunk_size"] = str(step)
        return wanted | {"actions": {"upload": {"href": f"{href}?signature=secret", "header": header}}}

    def take_object(self, path: str, body: bytes) -> tuple[int, Any, dict[str, str]]:
        oid, _, part = path.removeprefix("/lfs/").partition("/")
        if self.command == "POST":  # all parts are here
            parts = json.loads(body)["parts"]
            data = b"".join(self.server.objects.pop(f"{oid}/{each['partNumber']}") for each in parts)
        else:
            data = body
            self.server.received_bytes += len(body)
        if part:
            self.server.objects[f"{oid}/{part}"] = data
        elif hashlib.sha256(data).hexdigest() != oid:
            return 400, {"error": "the content has another digest"}, {}
        else:
            self.server.objects[oid] = data
        return 200, {}, {"ETag": f'"{part or oid}"'}

    def commit(self, repository: Repository, name: str, lines: list[dict[str, Any]]) -> tuple[int, Any, dict[str, str]]:
        head, files = repository.commits[-1]
        files = dict(files)
        for line in lines:
            value = line["value"]
            match line["key"]:
                case "header" if value.get("parentCommit", head) != head:
                    return 412, {"error": "A commit has happened since. Please refresh and try again."}, {}
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                    self.server.received_bytes += len(files[value["path"]])
                case "lfsFile":
                    if value["oid"] not in self.server.objects:
                        return 400, {"error": f"LFS pointer {value['path']} points to a file that does not exist"}, {}
                    files[value["path"]] = self.server.objects[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        oid = repository.commit(files)
        return 200, {"commitUrl": f"{self.server.url}/{name}/commit/{oid}", "commitOid": oid}, {}

    def send(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        """Log nothing."""


def mode(path: str, size: int) -> str:
    return "lfs" if path.endswith(".safetensors") or size >= LARGE else "regular"


def describe(path: str, data: bytes) -> dict[str, Any]:
    """Return a file as the hub lists it."""
    found: dict[str, Any] = {"type": "file", "path": path, "size": len(data)}
    if mode(path, len(data)) == "lfs":
        lfs = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
        return found | {"oid": hashlib.sha1(lfs["oid"].encode()).hexdigest(), "lfs": lfs}  # type: ignore[attr-defined]
    return found | {"oid": hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()}
