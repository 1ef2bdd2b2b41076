"""A store that fails on request: files over HTTP, and the same files as an S3 bucket `data`."""

import hashlib
import random
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from hone_trainer.remote.fetch import Snapshot
from hone_trainer.remote.locations import Location

BUCKET = "data"
SECRET = {"AWS_ACCESS_KEY_ID": "reader", "AWS_SECRET_ACCESS_KEY": "opensesame"}
PIECE = 4096
Reply = tuple[int, dict[str, str], bytes]


class Store(ThreadingHTTPServer):
    """`files` by name. `spoil` is called with each request for content, and may return a fault.

    Faults: "cut" sends half of the range; "short" leaves out a byte and ends the answer; a number is a status.
    `reply` may answer any request, also one for a list, in place of the store.
    """

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.has_ranges = True
        self.has_validators = True
        self.is_slow = False
        self.encryption = ""
        self.spoil: Callable[[int, str], str | int | None] = lambda number, name: None
        self.reply: Callable[[BaseHTTPRequestHandler], Reply | None] = lambda request: None
        self.asked: list[tuple[str, str, str]] = []
        self.headers_seen: list[dict[str, str]] = []
        self._lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), Answer)
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def number(self, method: str, name: str, part: str) -> int:
        with self._lock:
            self.asked.append((method, name, part))
            return len(self.asked)


def content(seed: int, size: int = 10 * PIECE + 17) -> bytes:
    return random.Random(seed).randbytes(size)


def bucket(store: Store, key: str = "faq/") -> Location:
    return Location("dataset", f"s3://data/{key}", endpoint=store.url, secret=SECRET)


def files_of(snapshot: Snapshot) -> dict[str, bytes]:
    paths = [path for path in snapshot.folder.rglob("*") if path.is_file()]
    return {path.relative_to(snapshot.folder).as_posix(): path.read_bytes() for path in paths}


def error(code: str, status: int = 400) -> Reply:
    """Return an S3 server's answer for an error."""
    body = f"<Error><Code>{code}</Code><Message>refused by the test</Message></Error>".encode()
    return status, {"Content-Type": "application/xml"}, body


def etag_of(data: bytes) -> str:
    return f'"{hashlib.md5(data).hexdigest()}"'


class Answer(BaseHTTPRequestHandler):
    server: Store
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        name = unquote(address.path).lstrip("/").removeprefix(f"{BUCKET}/")
        self.server.headers_seen.append(dict(self.headers))
        if reply := self.server.reply(self):
            return self.send(reply[0], reply[2], reply[1])
        query = parse_qs(address.query)
        is_s3 = address.path.startswith(f"/{BUCKET}")
        if "list-type" in query:
            if not is_s3:
                return self.refuse(404, "NoSuchBucket")
            return self.send(200, self.listing(query.get("prefix", [""])[0]), {"Content-Type": "application/xml"})
        part = self.headers.get("Range", "")
        fault = self.server.spoil(self.server.number(self.command, name, part), name)
        if isinstance(fault, int):
            return self.refuse(fault, "SlowDown" if fault == 503 else "AccessDenied")
        data = self.server.files.get(name)
        if data is None:
            return self.refuse(404, "NoSuchKey")
        wanted = self.headers.get("If-Match")
        if wanted and wanted != etag_of(data):
            return self.refuse(412, "PreconditionFailed")
        headers = {"ETag": etag_of(data)} if self.server.has_validators else {}
        if self.server.encryption:
            headers["x-amz-server-side-encryption"] = self.server.encryption
        status, body = 200, data
        if part and self.server.has_ranges:
            first, _, last = part.removeprefix("bytes=").partition("-")
            if int(first) >= len(data):
                return self.send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            body, status = data[int(first) : int(last or len(data)) + 1], 206
            headers["Content-Range"] = f"bytes {first}-{int(first) + len(body) - 1}/{len(data)}"
        return self.send(status, body, headers, "" if fault is None else str(fault))

    do_HEAD = do_GET

    def listing(self, prefix: str) -> bytes:
        entries = "".join(
            f"<Contents><Key>{escape(name)}</Key><Size>{len(data)}</Size><ETag>&quot;{etag_of(data)[1:-1]}&quot;</ETag>"
            "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
            for name, data in sorted(self.server.files.items())
            if name.startswith(prefix)
        )
        return (
            f'<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>{BUCKET}</Name>'
            f"<IsTruncated>false</IsTruncated>{entries}</ListBucketResult>"
        ).encode()

    def refuse(self, status: int, code: str) -> None:
        _, headers, body = error(code)
        self.send(status, body, headers)

    def send(self, status: int, body: bytes, headers: dict[str, str], fault: str = "") -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Transfer-Encoding" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault:
            self.close_connection = True
            body = body[: len(body) // 2] if fault == "cut" else body[:-1]
        try:
            for start in range(0, len(body), 4096) if self.server.is_slow else ():
                self.wfile.write(body[start : start + 4096])
                time.sleep(0.002)
            if not self.server.is_slow:
                self.wfile.write(body)
        except OSError:
            self.close_connection = True

    def log_message(self, *args: Any) -> None:
        """Log nothing."""
