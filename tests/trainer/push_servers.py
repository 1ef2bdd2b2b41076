"""Stand-ins of a registry and of an S3 server, in memory, which answer as a test wants.

`intercept` gets each request first, and answers it when it returns True. For servers that can't be started here: those
with quotas, rules and keys, behind proxies, or without a part of the protocol.
"""

import hashlib
import json
import os
import re
import ssl
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape


class StandIn(ThreadingHTTPServer):
    """A server. `requests` are method and path of what was asked."""

    daemon_threads = True

    def __init__(self, handler: type["Request"], tls: tuple[Path, Path] | None = None) -> None:
        self.requests: list[tuple[str, str]] = []
        self.intercept: Callable[[Any], bool | None] = lambda request: None
        super().__init__(("127.0.0.1", 0), handler)
        self.is_secure = tls is not None
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
            self.socket = context.wrap_socket(self.socket, server_side=True)
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"

    @property
    def url(self) -> str:
        return f"http{'s' if self.is_secure else ''}://{self.host}"

    def count(self, method: str, part: str) -> int:
        """Return how many requests there were with this method and a path that contains `part`."""
        return sum(one == method and part in path for one, path in self.requests)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing."""


class Request(BaseHTTPRequestHandler):
    """A request that was received, with its body."""

    server: Any
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.requests.append((self.command, self.path))
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        address = urlsplit(self.path)
        self.query = {name: found[0] for name, found in parse_qs(address.query, keep_blank_values=True).items()}
        self.name = unquote(address.path)
        if not self.server.intercept(self):
            self.answer()

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

    def answer(self) -> None:
        raise NotImplementedError

    def send(self, status: int, content: object = b"", **headers: str) -> bool:
        """Send an answer: bytes, or JSON."""
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        return True

    def hang_up(self) -> bool:
        """End the connection without an answer."""
        self.close_connection = True
        return True

    def log_message(self, *args: Any) -> None:
        """Log nothing."""


class RegistryRequest(Request):
    """A request to a registry. `kind` is manifests, blobs or uploads; `reference` a tag, a digest or empty."""

    @property
    def operation(self) -> tuple[str, str]:
        """The method, and what the request is about."""
        found = re.search(r"/(blobs/uploads|blobs|manifests)/", self.name)
        return self.command, found[1].rpartition("/")[2] if found else ""

    def refuse(self, status: int, code: str, sentence: str) -> bool:
        return self.send(status, {"errors": [{"code": code, "message": sentence}]}, Content_Type="application/json")

    def answer(self) -> None:
        server, reference = self.server, self.name.rpartition("/")[2]
        digest = f"sha256:{hashlib.sha256(self.body).hexdigest()}"
        match self.operation:
            case "POST", "uploads":
                self.send(202, Location=server.locate(self))
            case "PUT", "uploads":
                server.blobs[digest] = self.body
                self.send(201)
            case "PUT", "manifests":
                server.manifests[reference] = server.manifests[digest] = self.body
                self.send(201, Docker_Content_Digest=digest)
            case _, kind:
                content = {"blobs": server.blobs, "manifests": server.manifests}.get(kind, {}).get(reference)
                if content is None:
                    self.refuse(404, "UNKNOWN", "nothing is here")
                elif self.headers.get("Range") and self.command == "GET":
                    self.send(206, content[:1], Content_Range=f"bytes 0-0/{len(content)}")
                else:
                    self.send(200, content)


class RegistryStandIn(StandIn):
    """A registry. `locate` returns the address of an upload."""

    def __init__(self, tls: tuple[Path, Path] | None = None) -> None:
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, bytes] = {}
        self.locate: Callable[[RegistryRequest], str] = lambda request: f"{request.name}1"
        super().__init__(RegistryRequest, tls)


class BucketRequest(Request):
    """A request to the bucket `data`."""

    @property
    def operation(self) -> tuple[str, str]:
        """The method, and what the request is about: the bucket, an object, an upload or a part."""
        if "partNumber" in self.query:
            return self.command, "part"
        if "uploadId" in self.query or "uploads" in self.query:
            return self.command, "upload"
        return self.command, "object" if self.key else "bucket"

    @property
    def key(self) -> str:
        return self.name.removeprefix("/data").lstrip("/")

    def refuse(self, status: int, code: str, sentence: str) -> bool:
        body = f"<Error><Code>{code}</Code><Message>{escape(sentence)}</Message></Error>"
        return self.send(status, body.encode(), Content_Type="application/xml")

    def is_kept_by_condition(self) -> bool:
        """Return whether the condition of a write does not hold."""
        held = self.server.objects.get(self.key)
        if self.headers.get("If-None-Match") == "*":
            return held is not None
        wanted = self.headers.get("If-Match")
        return wanted is not None and (held is None or wanted != f'"{held[1]}"')

    def answer(self) -> None:
        server, key = self.server, self.key
        is_write = self.operation in (("PUT", "object"), ("POST", "upload")) and "uploads" not in self.query
        has_condition = "If-Match" in self.headers or "If-None-Match" in self.headers
        if is_write and server.conditions == "refused" and has_condition:
            self.refuse(501, "NotImplemented", "A header you provided implies functionality that is not implemented.")
        elif is_write and server.conditions == "kept" and self.is_kept_by_condition():
            self.refuse(412, "PreconditionFailed", "At least one of the preconditions you specified did not hold.")
        else:
            self.answer_allowed(server, key)

    def answer_allowed(self, server: "BucketStandIn", key: str) -> None:
        match self.operation:
            case "GET", "bucket" | "upload":
                self.send(200, self.list_content(server).encode(), Content_Type="application/xml")
            case "POST", "upload":
                self.post(server, key)
            case "PUT", "part":
                etag = server.make_etag(self.body)
                server.uploads[self.query["uploadId"]][1][int(self.query["partNumber"])] = (self.body, etag)
                self.send(200, ETag=f'"{etag}"')
            case "PUT", "object":
                server.objects[key] = self.body, server.make_etag(self.body)
                self.send(200, ETag=f'"{server.objects[key][1]}"')
            case "DELETE", kind:
                server.uploads.pop(self.query.get("uploadId", ""), None)
                if kind == "object":
                    server.objects.pop(key, None)
                self.send(204)
            case _, _ if key not in server.objects:
                self.refuse(404, "NoSuchKey", "The specified key does not exist.")
            case _, _:
                content, etag = server.objects[key]
                self.send(200, content, ETag=f'"{etag}"', Last_Modified="Thu, 01 Jan 2026 00:00:00 GMT")

    def list_content(self, server: "BucketStandIn") -> str:
        if "uploads" in self.query:
            rows = "".join(
                f"<Upload><Key>{escape(key)}</Key><UploadId>{number}</UploadId></Upload>"
                for number, (key, _) in server.uploads.items()
            )
            return f"<ListMultipartUploadsResult><Bucket>data</Bucket>{rows}</ListMultipartUploadsResult>"
        if "uploadId" in self.query:
            rows = "".join(
                f"<Part><PartNumber>{number}</PartNumber><Size>{len(data)}</Size><ETag>{etag}</ETag></Part>"
                for number, (data, etag) in server.uploads[self.query["uploadId"]][1].items()
            )
            return f"<ListPartsResult>{rows}</ListPartsResult>"
        rows = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(data)}</Size><ETag>{etag}</ETag></Contents>"
            for key, (data, etag) in sorted(server.objects.items())
            if key.startswith(self.query.get("prefix", ""))
        )
        return f"<ListBucketResult><Name>data</Name>{rows}</ListBucketResult>"

    def post(self, server: "BucketStandIn", key: str) -> None:
        if "uploads" in self.query:
            number = os.urandom(4).hex()
            server.uploads[number] = key, {}
            body = f"<InitiateMultipartUploadResult><UploadId>{number}</UploadId></InitiateMultipartUploadResult>"
            self.send(200, body.encode(), Content_Type="application/xml")
            return
        parts = server.uploads[self.query["uploadId"]][1]
        named = re.findall(r"<PartNumber>(\d+)</PartNumber><ETag>(?:&quot;|\")?([^<\"&]*)", self.body.decode())
        if any(parts[int(number)][1] != etag for number, etag in named):
            self.refuse(400, "InvalidPart", "One or more of the specified parts could not be found.")
            return
        del server.uploads[self.query["uploadId"]]
        data = b"".join(parts[int(number)][0] for number, _ in named)
        etag = hashlib.md5(b"".join(bytes.fromhex(etag) for _, etag in named)).hexdigest()
        server.objects[key] = data, f"{etag}-{len(named)}"
        body = f"<CompleteMultipartUploadResult><ETag>{server.objects[key][1]}</ETag></CompleteMultipartUploadResult>"
        self.send(200, body.encode(), Content_Type="application/xml")


class BucketStandIn(StandIn):
    """An S3 server. `has_key`: a key encrypts the objects, whose ETags are no MD5. `conditions`: what becomes of
    conditions for writes: kept, ignored or refused.
    """

    def __init__(self, *, has_key: bool = False, conditions: str = "kept") -> None:
        self.has_key, self.conditions = has_key, conditions
        self.objects: dict[str, tuple[bytes, str]] = {}
        self.uploads: dict[str, tuple[str, dict[int, tuple[bytes, str]]]] = {}
        super().__init__(BucketRequest)

    def make_etag(self, content: bytes) -> str:
        return os.urandom(16).hex() if self.has_key else hashlib.md5(content).hexdigest()
